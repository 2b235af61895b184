#include "engine/constraint/token_constraint.h"

#include <boost/json.hpp>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

namespace json = boost::json;

// Between two parts of JSON a line may end and be indented: enough for what people write, and no place to write spaces
// without end, as small models like to do.
constexpr char kJsonSpace[] = "\\n?[ \\t]{0,32}";
constexpr char kThought[] = "thought[suffix=\"</think>\"]: /(.|\\n)*/\nspace: /[ \\t\\n]{0,8}/\n";

// Less memory than llguidance allows by itself (a state takes 1 to 2 KB), less time for one token (7 and 1 ms, by what
// it says of its speed), and nothing computed ahead, which may take seconds.
void TightenLimits(llguidance::Limits& limits) {
  limits.step_lexer_fuel = 100'000;
  limits.step_max_items = 20'000;
  limits.max_lexer_states = 25'000;
  limits.max_grammar_size = 100'000;
  limits.precompute_large_lexemes = false;
  limits.verbose_errors = false;
}

absl::StatusOr<json::object> ParseSchema(const std::string& text) {
  json::error_code error;
  json::value schema = json::parse(text, error, {}, {.max_depth = 128});
  if (error) return absl::InvalidArgumentError(absl::StrCat("the schema is no valid JSON: ", error.message()));
  if (!schema.is_object()) return absl::InvalidArgumentError("the schema must be a JSON object");
  json::object& object = schema.get_object();
  if (!object.contains("x-guidance")) object["x-guidance"] = {{"whitespace_pattern", kJsonSpace}};
  return std::move(object);
}

// A Lark terminal: the expression between slashes.
std::string RegexTerminal(const std::string& regex) {
  std::string out = "start: /";
  for (size_t i = 0; i < regex.size(); ++i) {
    if (regex[i] == '\\' && i + 1 < regex.size()) {
      const char escaped = regex[++i];
      out += '\\';
      out += escaped == '\n' ? 'n' : escaped;
    } else if (regex[i] == '/') {
      out += "\\/";
    } else if (regex[i] == '\n') {
      out += "\\n";
    } else {
      out += regex[i];
    }
  }
  return out + "/";
}

std::string WholeAnswer(OutputFormat::Reasoning reasoning) {
  switch (reasoning) {
    case OutputFormat::Reasoning::kNone:
      break;
    case OutputFormat::Reasoning::kMayComeFirst:
      return absl::StrCat("start: (\"<think>\" thought space)? @answer\n", kThought);
    case OutputFormat::Reasoning::kIsOpen:
      return absl::StrCat("start: thought space @answer\n", kThought);
  }
  return "start: @answer";
}

}  // namespace

absl::StatusOr<std::string> GuidanceGrammar(const OutputFormat& format) {
  json::object answer;
  answer["name"] = "answer";
  switch (format.kind) {
    case OutputFormat::Kind::kJsonSchema: {
      ASSIGN_OR_RETURN(answer["json_schema"], ParseSchema(format.text));
      break;
    }
    case OutputFormat::Kind::kRegex:
      answer["lark_grammar"] = RegexTerminal(format.text);
      break;
    case OutputFormat::Kind::kLark:
      answer["lark_grammar"] = format.text;
      break;
  }
  json::object whole;
  whole["grammars"] = {json::object{{"lark_grammar", WholeAnswer(format.reasoning)}}, std::move(answer)};
  return json::serialize(whole);
}

absl::Status TokenConstraint::Error() {
  absl::string_view text = library_.matcher_error(matcher_);
  return absl::InvalidArgumentError(
      absl::StrCat("response_format: cannot be followed: ", text.substr(0, text.find('\n'))));
}

absl::StatusOr<absl::Span<const uint32_t>> TokenConstraint::Allowed() {
  if (library_.compute_mask(matcher_, mask_.data(), mask_.size() * sizeof(uint32_t)) != 0) return Error();
  return mask_;
}

absl::Status TokenConstraint::Accept(absl::Span<const TokenId> tokens) {
  static_assert(sizeof(TokenId) == sizeof(uint32_t));
  if (library_.consume(matcher_, reinterpret_cast<const uint32_t*>(tokens.data()), tokens.size()) != 0) return Error();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ConstraintCompiler>> ConstraintCompiler::Create(const Tokenizer& tokenizer,
                                                                               const ModelConfig& config) {
  if (config.eos_tokens.empty()) {
    return absl::FailedPreconditionError("response_format: needs a token that ends the model's sequences");
  }
  ASSIGN_OR_RETURN(const llguidance::Library* library, llguidance::Load());
  std::vector<uint32_t> lengths(config.vocab_size);
  std::string bytes;
  for (TokenId token = 0; token < std::min(config.vocab_size, tokenizer.vocabulary_size()); ++token) {
    const size_t begin = bytes.size();
    if (const absl::string_view text = tokenizer.TokenBytes(token); !text.empty()) {
      absl::StrAppend(&bytes, text);
    } else if (const absl::string_view name = tokenizer.TokenBytes(token, /*with_special=*/true); !name.empty()) {
      absl::StrAppend(&bytes, "\xFF", name);
    }
    lengths[token] = static_cast<uint32_t>(bytes.size() - begin);
  }
  const std::vector<uint32_t> ends(config.eos_tokens.begin(), config.eos_tokens.end());
  const llguidance::TokenizerInit init{.vocabulary_size = static_cast<uint32_t>(config.vocab_size),
                                       .end_token = ends[0],
                                       .token_lengths = lengths.data(),
                                       .token_bytes = reinterpret_cast<const uint8_t*>(bytes.data()),
                                       .tokenizes_greedily = true,
                                       .more_end_tokens = ends.data() + 1,
                                       .num_more_end_tokens = static_cast<uint32_t>(ends.size() - 1)};
  char error[512] = "";
  llguidance::Tokenizer* vocabulary = library->new_tokenizer(&init, error, sizeof(error));
  if (vocabulary == nullptr) return absl::InternalError(absl::StrCat("llguidance: ", error));
  return std::unique_ptr<ConstraintCompiler>(
      new ConstraintCompiler(*library, std::shared_ptr<llguidance::Tokenizer>(vocabulary, library->free_tokenizer)));
}

absl::StatusOr<std::unique_ptr<TokenConstraint>> ConstraintCompiler::Compile(const OutputFormat& format) const {
  absl::StatusOr<std::string> grammar = GuidanceGrammar(format);
  if (!grammar.ok()) return absl::InvalidArgumentError(absl::StrCat("response_format: ", grammar.status().message()));
  llguidance::MatcherInit init;
  library_.set_defaults(&init, vocabulary_.get());
  init.log_buffer_level = init.log_stderr_level = 0;
  TightenLimits(init.limits);
  llguidance::Matcher* matcher = library_.new_matcher(&init, "llguidance", grammar->c_str());
  std::unique_ptr<TokenConstraint> constraint(new TokenConstraint(library_, vocabulary_, matcher));
  if (const char* error = library_.matcher_error(matcher); error != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("response_format: ", absl::StripAsciiWhitespace(error)));
  }
  return constraint;
}

}  // namespace tandem
