// Our template engine against what the real jinja2 rendered: tests/golden/jinja/make_cases.py.

#include <boost/json.hpp>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/jinja/template.h"
#include "tests/support/status_matchers.h"

namespace tandem::jinja {
namespace {

namespace json = boost::json;
using ::testing::HasSubstr;

Value FromJson(const json::value& value) {
  if (value.is_null()) return Value(None());
  if (value.is_bool()) return Value(value.as_bool());
  if (value.is_int64()) return Value(value.as_int64());
  if (value.is_double()) return Value(value.as_double());
  if (value.is_string()) return Value(std::string(value.as_string()));
  if (value.is_array()) {
    std::vector<Value> items;
    for (const json::value& item : value.as_array()) items.push_back(FromJson(item));
    return MakeList(std::move(items));
  }
  std::vector<std::pair<Value, Value>> items;
  for (const auto& entry : value.as_object()) {
    items.emplace_back(Value(std::string(entry.key())), FromJson(entry.value()));
  }
  return MakeDict(std::move(items));
}

const json::array& Cases() {
  static const auto* const cases = [] {
    std::ifstream file(absl::StrCat(TANDEM_SOURCE_DIR, "/tests/golden/jinja/cases.json"));
    std::stringstream text;
    text << file.rdbuf();
    return new json::value(json::parse(text.str()));
  }();
  return cases->as_array();
}

absl::StatusOr<std::string> Render(absl::string_view source,
                                   std::vector<std::pair<std::string, Value>> variables = {}) {
  absl::StatusOr<std::unique_ptr<Template>> parsed = Template::Parse(source);
  if (!parsed.ok()) return parsed.status();
  return (*parsed)->Render(std::move(variables));
}

class JinjaCase : public testing::TestWithParam<size_t> {};

TEST_P(JinjaCase, RendersAsJinja2) {
  const json::object& test = Cases()[GetParam()].as_object();
  std::vector<std::pair<std::string, Value>> variables;
  for (const auto& entry : test.at("variables").as_object()) {
    variables.emplace_back(std::string(entry.key()), FromJson(entry.value()));
  }
  absl::StatusOr<std::string> text = Render(std::string(test.at("template").as_string()), std::move(variables));
  if (test.contains("fails")) {
    EXPECT_THAT(text, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 1")));
  } else {
    EXPECT_THAT(text, IsOkAndHolds(std::string(test.at("expected").as_string())));
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, JinjaCase, testing::Range(size_t{0}, Cases().size()), [](const auto& info) {
  return std::string(Cases()[info.param].as_object().at("name").as_string());
});

TEST(JinjaBounds, StopsTemplatesThatRunForTooLong) {
  EXPECT_THAT(Render("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("too long")));
}

TEST(JinjaBounds, RefusesHugeRangesAndTexts) {
  EXPECT_THAT(Render("{{ range(1000000000) }}"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Render("{{ 'aaaaaaaaaaaaaaaa' * 100000000 }}"), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(JinjaBounds, RefusesDeepNestingWithoutOverflow) {
  std::string deep(100000, '(');
  EXPECT_THAT(Render("{{ " + deep + "1" + std::string(100000, ')') + " }}"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("nested too deep")));
  EXPECT_THAT(Render("{{ " + std::string(100000, '-') + "1 }}"), StatusIs(absl::StatusCode::kInvalidArgument));
  std::string nots;
  for (int i = 0; i < 50000; ++i) nots += "not ";
  EXPECT_THAT(Render("{{ " + nots + "1 }}"), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(JinjaBounds, RefusesLongChains) {
  for (std::string link :
       {"+1", "~1", ".a", "|string", "[0]", "()", "*1", "**1", " is none", " and 1", " or 1", " if 1", "|string.a"}) {
    std::string chain = "{{ 1";
    for (int i = 0; i < 100'000; ++i) chain += link;
    EXPECT_THAT(Render(chain + " }}"), StatusIs(absl::StatusCode::kInvalidArgument)) << link;
  }
}

TEST(JinjaBounds, BoundsWhatTextsAndListsTake) {
  for (const char* hostile : {
           "{% set n = namespace(t='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
           "{% set n = namespace(t='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set n.t = n.t|replace('a', 'aa') "
           "%}{% endfor %}",
           "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
           "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson "
           "}}",
           "{% set n = namespace(x=[1]) %}{% for i in range(100000) %}{% set n.x = [n.x] %}{% endfor %}",
           "{% set t = 'a' * 16000000 %}{{ [t, t]|join }}",
           "{% set t = 'a' * 1000000 %}{{ range(100)|join(t) }}",
           "{% set t = '\n' * 10000 %}{{ t|indent('a' * 100000, blank=true) }}",
           "{% set t = 'a' * 16000000 %}{% for c in t %}{% endfor %}",
           "{% set t = 'a' * 16000000 %}{{ t.split('a') }}",
           "{% for i in range(10000) %}{% set t = 'a' * 16000000 %}{% endfor %}",
       }) {
    EXPECT_THAT(Render(hostile), StatusIs(absl::StatusCode::kInvalidArgument)) << hostile;
  }
}

TEST(JinjaBounds, NumbersGoNoFurtherThanTheyHold) {
  EXPECT_THAT(Render("{{ [1,2,3,4,5,6][5::9223372036854775807] }}{{ [1,2,3][::-9223372036854775807] }}"),
              IsOkAndHolds("[6][3]"));
  EXPECT_THAT(Render("{{ [1,2,3][-9223372036854775807:] }}"), IsOkAndHolds("[1, 2, 3]"));
  EXPECT_THAT(Render("{{ range(1, 9223372036854775807, 9223372036854775806)|list }}"), IsOkAndHolds("[1]"));
  EXPECT_THAT(Render("{{ 1e300|int }}{{ -(-9223372036854775807 - 1) }}{{ '' * 9223372036854775807 }}"),
              testing::Not(StatusIs(absl::StatusCode::kInternal)));
}

TEST(JinjaBounds, NamespacesHoldNoNamespaces) {
  for (const char* circle : {"{% set n.s = n %}{{ n == n }}", "{% set n.s = [n] %}", "{% set n.s = {'a': [n]} %}",
                             "{% set n.s = n.items %}"}) {
    EXPECT_THAT(Render(std::string("{% set n = namespace() %}") + circle),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("namespace")));
  }
  // Equal in all their parts, but too large to compare one by one.
  EXPECT_THAT(Render("{% set n = namespace(x=[1], y=[1]) %}{% for i in range(50) %}{% set n.x = [n.x, n.x] %}"
                     "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}"),
              IsOkAndHolds("False"));
}

TEST(JinjaBounds, StopsMacrosThatCallThemselves) {
  EXPECT_THAT(Render("{% macro f(x) %}{{ x }}{% endmacro %}{% macro g() %}{{ f(1) }}{% endmacro %}{{ g() }}"),
              IsOkAndHolds("1"));
  EXPECT_THAT(Render("{% set ns = namespace() %}{% macro f() %}{{ ns.f() }}{% endmacro %}{% set "
                     "ns.f = f %}{{ f() }}"),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(JinjaErrors, NameTheLine) {
  EXPECT_THAT(Render("a\nb\n{{ 1 | nosuch }}"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 3")));
  EXPECT_THAT(Render("a\n{% frobnicate %}"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 2")));
}

}  // namespace
}  // namespace tandem::jinja
