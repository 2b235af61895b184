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
