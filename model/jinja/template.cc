#include "model/jinja/template.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/builtins.h"
#include "model/jinja/global_functions.h"
#include "model/jinja/limits.h"
#include "model/jinja/parser.h"

namespace tandem::jinja {
namespace {

constexpr int kMaxDepth = 200;

using Scope = absl::flat_hash_map<std::string, Value>;

enum class Flow { kNext, kBreak, kContinue };

class Interpreter {
 public:
  explicit Interpreter(std::vector<std::pair<std::string, Value>> variables) {
    scopes_.emplace_back();
    for (auto& [name, value] : GlobalFunctions()) scopes_[0][name] = std::move(value);
    for (auto& [name, value] : variables) scopes_[0][name] = std::move(value);
  }

  absl::StatusOr<std::string> Run(const Block& block) {
    ASSIGN_OR_RETURN(Flow flow, RunBlock(block));
    (void)flow;
    return std::move(output_);
  }

 private:
  // --- Statements ---

  // Adds the line to an error that has none.
  static absl::Status AtLine(const absl::Status& status, int line) {
    if (absl::StartsWith(status.message(), "line ")) return status;
    return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", status.message()));
  }

  absl::StatusOr<Flow> RunBlock(const Block& block) {
    for (const auto& statement : block) {
      if (++steps_ > kMaxSteps)
        return absl::InvalidArgumentError(absl::StrCat("line ", statement->line, ": the template runs for too long"));
      absl::StatusOr<Flow> flow = RunStatement(*statement);
      if (!flow.ok()) return AtLine(flow.status(), statement->line);
      if (*flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  absl::Status Write(absl::string_view text) {
    if (output_.size() + text.size() > kMaxTextBytes) return absl::InvalidArgumentError("the output is over 16 MiB");
    output_.append(text.data(), text.size());
    return absl::OkStatus();
  }

  absl::StatusOr<Flow> RunStatement(const Statement& statement) {
    switch (statement.kind) {
      case Statement::Kind::kText:
        RETURN_IF_ERROR(Write(statement.text));
        return Flow::kNext;
      case Statement::Kind::kOutput: {
        ASSIGN_OR_RETURN(Value value, Evaluate(*statement.expression));
        RETURN_IF_ERROR(Write(ToText(value)));
        return Flow::kNext;
      }
      case Statement::Kind::kIf:
        for (size_t i = 0; i < statement.blocks.size(); ++i) {
          if (i < statement.conditions.size()) {
            ASSIGN_OR_RETURN(Value condition, Evaluate(*statement.conditions[i]));
            if (!condition.Truthy()) continue;
          }
          return RunBlock(statement.blocks[i]);
        }
        return Flow::kNext;
      case Statement::Kind::kFor:
        return RunFor(statement);
      case Statement::Kind::kSet: {
        ASSIGN_OR_RETURN(Value value, Evaluate(*statement.expression));
        RETURN_IF_ERROR(Assign(statement, std::move(value)));
        return Flow::kNext;
      }
      case Statement::Kind::kSetBlock: {
        ASSIGN_OR_RETURN(std::string text, Capture(statement.blocks[0]));
        scopes_.back()[statement.targets[0]] = Value(std::move(text));
        return Flow::kNext;
      }
      case Statement::Kind::kMacro:
        DefineMacro(statement);
        return Flow::kNext;
      case Statement::Kind::kBreak:
        return Flow::kBreak;
      case Statement::Kind::kContinue:
        return Flow::kContinue;
      case Statement::Kind::kScope:
        return RunBlock(statement.blocks[0]);
    }
    return Flow::kNext;
  }

  absl::StatusOr<std::string> Capture(const Block& block) {
    std::string outer = std::exchange(output_, {});
    absl::StatusOr<Flow> flow = RunBlock(block);
    std::string inner = std::exchange(output_, std::move(outer));
    if (!flow.ok()) return flow.status();
    return inner;
  }

  absl::Status Bind(const std::vector<std::string>& targets, const Value& value, Scope& scope) {
    if (targets.size() == 1) {
      scope[targets[0]] = value;
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(std::vector<Value> parts, Iterate(value));
    if (parts.size() != targets.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot unpack ", parts.size(), " values into ", targets.size(), " names"));
    }
    for (size_t i = 0; i < targets.size(); ++i) scope[targets[i]] = std::move(parts[i]);
    return absl::OkStatus();
  }

  absl::Status Assign(const Statement& statement, Value value) {
    if (statement.attribute.empty()) return Bind(statement.targets, value, scopes_.back());
    Value target = Lookup(statement.targets[0]);
    if (target.AsDict() == nullptr || !target.AsDict()->is_namespace) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", statement.targets[0], "\" is no namespace: its attributes cannot be set"));
    }
    if (HoldsNamespace(value)) return absl::InvalidArgumentError("a namespace cannot be kept in a namespace");
    target.AsDict()->Set(Value(statement.attribute), std::move(value));
    return absl::OkStatus();
  }

  absl::StatusOr<Flow> RunFor(const Statement& statement) {
    ASSIGN_OR_RETURN(Value iterable, Evaluate(*statement.expression));
    ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(iterable));
    if (!statement.conditions.empty()) {
      std::vector<Value> kept;
      for (Value& item : items) {
        scopes_.emplace_back();
        absl::Status bound = Bind(statement.targets, item, scopes_.back());
        absl::StatusOr<Value> condition =
            bound.ok() ? Evaluate(*statement.conditions[0]) : absl::StatusOr<Value>(bound);
        scopes_.pop_back();
        if (!condition.ok()) return condition.status();
        if (condition->Truthy()) kept.push_back(std::move(item));
      }
      items = std::move(kept);
    }
    if (items.empty()) return statement.blocks.size() > 1 ? RunBlock(statement.blocks[1]) : Flow::kNext;
    const int64_t size = static_cast<int64_t>(items.size());
    for (int64_t i = 0; i < size; ++i) {
      if (++steps_ > kMaxSteps) return absl::InvalidArgumentError("the template runs for too long");
      scopes_.emplace_back();
      scopes_.back()["loop"] = LoopVariable(items, i, size);
      absl::Status bound = Bind(statement.targets, items[i], scopes_.back());
      absl::StatusOr<Flow> flow = bound.ok() ? RunBlock(statement.blocks[0]) : absl::StatusOr<Flow>(bound);
      scopes_.pop_back();
      if (!flow.ok()) return flow;
      if (*flow == Flow::kBreak) break;
    }
    return Flow::kNext;
  }

  static Value LoopVariable(const std::vector<Value>& items, int64_t i, int64_t size) {
    Value loop = MakeDict({{"index", i + 1},
                           {"index0", i},
                           {"revindex", size - i},
                           {"revindex0", size - i - 1},
                           {"first", i == 0},
                           {"last", i + 1 == size},
                           {"length", size}});
    if (i > 0) loop.AsDict()->Set("previtem", items[i - 1]);
    if (i + 1 < size) loop.AsDict()->Set("nextitem", items[i + 1]);
    loop.AsDict()->Set("cycle", MakeCallable([i](const Arguments& arguments) -> absl::StatusOr<Value> {
                         if (arguments.positional.empty()) return Value();
                         return arguments.positional[i % arguments.positional.size()];
                       }));
    return loop;
  }

  void DefineMacro(const Statement& statement) {
    scopes_.back()[statement.text] =
        MakeCallable([this, &statement](const Arguments& arguments) -> absl::StatusOr<Value> {
          if (++depth_ > kMaxDepth) return absl::InvalidArgumentError("macros call each other too deep");
          std::vector<Scope> outer = std::exchange(scopes_, {});
          scopes_.push_back(outer[0]);  // A macro sees the globals and its arguments.
          scopes_.emplace_back();
          absl::Status bound;
          for (size_t i = 0; i < statement.targets.size() && bound.ok(); ++i) {
            const Value* argument = arguments.Get(i, statement.targets[i]);
            if (argument != nullptr) {
              scopes_.back()[statement.targets[i]] = *argument;
            } else if (statement.conditions[i] != nullptr) {
              absl::StatusOr<Value> value = Evaluate(*statement.conditions[i]);
              bound = value.status();
              if (value.ok()) scopes_.back()[statement.targets[i]] = *std::move(value);
            } else {
              scopes_.back()[statement.targets[i]] = Value();
            }
          }
          absl::StatusOr<std::string> text =
              bound.ok() ? Capture(statement.blocks[0]) : absl::StatusOr<std::string>(bound);
          scopes_ = std::move(outer);
          --depth_;
          if (!text.ok()) return text.status();
          return Value(*std::move(text));
        });
  }

  // --- Expressions ---

  Value Lookup(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      auto entry = scope->find(name);
      if (entry != scope->end()) return entry->second;
    }
    Value undefined;
    undefined.data = Undefined{name};
    return undefined;
  }

  absl::StatusOr<Value> Evaluate(const Expression& expression) {
    if (++steps_ > kMaxSteps) return absl::InvalidArgumentError("the template runs for too long");
    if (++depth_ > kMaxDepth) {
      --depth_;
      return absl::InvalidArgumentError("nested too deep");
    }
    absl::StatusOr<Value> value = EvaluateKind(expression);
    --depth_;
    absl::Status status = value.status();
    if (status.ok()) status = Charge(expression.kind, *value);
    if (!status.ok()) return AtLine(status, expression.line);
    return value;
  }

  // Counts what a value takes, as far as the expression made it.
  absl::Status Charge(Expression::Kind kind, const Value& value) {
    if (NestingDepth(value) > kMaxNesting) {
      return absl::InvalidArgumentError("lists and dicts are nested too deep");
    }
    if (const std::string* text = value.AsString()) {
      if (text->size() > kMaxTextBytes) return TextTooLong();
      bytes_ += text->size();
    }
    const bool refers = kind == Expression::Kind::kName || kind == Expression::Kind::kAttribute ||
                        kind == Expression::Kind::kIndex || kind == Expression::Kind::kConditional;
    if (const List* list = value.AsList(); list != nullptr && !refers) bytes_ += list->items.size() * sizeof(Value);
    if (bytes_ > kMaxBytes) return absl::InvalidArgumentError("the template makes too much");
    return absl::OkStatus();
  }

  absl::StatusOr<Value> EvaluateKind(const Expression& expression) {
    switch (expression.kind) {
      case Expression::Kind::kLiteral:
        return expression.value;
      case Expression::Kind::kName:
        return Lookup(expression.name);
      case Expression::Kind::kList:
      case Expression::Kind::kTuple: {
        std::vector<Value> items;
        for (const auto& child : expression.children) {
          ASSIGN_OR_RETURN(Value item, Evaluate(*child));
          items.push_back(std::move(item));
        }
        Value list = MakeList(std::move(items));
        list.AsList()->is_tuple = expression.kind == Expression::Kind::kTuple;
        return list;
      }
      case Expression::Kind::kDict: {
        Value dict = MakeDict({});
        for (size_t i = 0; i < expression.children.size(); i += 2) {
          ASSIGN_OR_RETURN(Value key, Evaluate(*expression.children[i]));
          ASSIGN_OR_RETURN(Value value, Evaluate(*expression.children[i + 1]));
          dict.AsDict()->Set(key, std::move(value));
        }
        return dict;
      }
      case Expression::Kind::kAttribute: {
        ASSIGN_OR_RETURN(Value object, Evaluate(*expression.children[0]));
        RETURN_IF_ERROR(CheckDefined(object));
        return GetAttribute(object, expression.name);
      }
      case Expression::Kind::kIndex: {
        ASSIGN_OR_RETURN(Value object, Evaluate(*expression.children[0]));
        ASSIGN_OR_RETURN(Value key, Evaluate(*expression.children[1]));
        RETURN_IF_ERROR(CheckDefined(object));
        Value item = GetItem(object, key);
        if (item.IsUndefined() && key.AsString() != nullptr) return FindMethod(object, *key.AsString());
        return item;
      }
      case Expression::Kind::kSlice:
        return EvaluateSlice(expression);
      case Expression::Kind::kCall: {
        ASSIGN_OR_RETURN(Value function, Evaluate(*expression.children[0]));
        ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(expression.arguments));
        const auto* callable = function.As<std::shared_ptr<Callable>>();
        if (callable == nullptr)
          return absl::InvalidArgumentError(absl::StrCat(Describe(*expression.children[0]), " is no function"));
        return (*callable)->call(arguments);
      }
      case Expression::Kind::kFilter: {
        ASSIGN_OR_RETURN(Value input, Evaluate(*expression.children[0]));
        ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(expression.arguments));
        return ApplyFilter(expression.name, input, arguments);
      }
      case Expression::Kind::kTest: {
        ASSIGN_OR_RETURN(Value input, Evaluate(*expression.children[0]));
        ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(expression.arguments));
        ASSIGN_OR_RETURN(bool passes, ApplyTest(expression.name, input, arguments));
        return Value(passes);
      }
      case Expression::Kind::kNot: {
        ASSIGN_OR_RETURN(Value operand, Evaluate(*expression.children[0]));
        return Value(!operand.Truthy());
      }
      case Expression::Kind::kNegate:
      case Expression::Kind::kPlus: {
        ASSIGN_OR_RETURN(Value operand, Evaluate(*expression.children[0]));
        if (!operand.IsNumber()) return absl::InvalidArgumentError(absl::StrCat("no number: ", TypeName(operand)));
        if (expression.kind == Expression::Kind::kPlus) return operand;
        if (operand.As<double>() != nullptr) return Value(-operand.ToDouble());
        return Value(-std::max(operand.ToWhole(), -INT64_MAX));
      }
      case Expression::Kind::kBinary:
        return EvaluateBinary(expression);
      case Expression::Kind::kComparison:
        return EvaluateComparison(expression);
      case Expression::Kind::kConditional: {
        ASSIGN_OR_RETURN(Value condition, Evaluate(*expression.children[1]));
        if (condition.Truthy()) return Evaluate(*expression.children[0]);
        return expression.children[2] == nullptr ? Value() : Evaluate(*expression.children[2]);
      }
    }
    return Value();
  }

  static std::string Describe(const Expression& expression) {
    return expression.name.empty() ? "the value" : absl::StrCat("\"", expression.name, "\"");
  }

  static absl::Status CheckDefined(const Value& object) {
    const Undefined* undefined = object.As<Undefined>();
    if (undefined == nullptr) return absl::OkStatus();
    return absl::InvalidArgumentError(undefined->name.empty() ? "an undefined value has no attributes"
                                                              : absl::StrCat("\"", undefined->name, "\" is undefined"));
  }

  absl::StatusOr<Arguments> EvaluateArguments(const CallArguments& arguments) {
    Arguments out;
    for (const auto& argument : arguments.positional) {
      ASSIGN_OR_RETURN(Value value, Evaluate(*argument));
      out.positional.push_back(std::move(value));
    }
    for (const auto& [name, argument] : arguments.named) {
      ASSIGN_OR_RETURN(Value value, Evaluate(*argument));
      out.named.emplace_back(name, std::move(value));
    }
    return out;
  }

  absl::StatusOr<Value> EvaluateSlice(const Expression& expression) {
    ASSIGN_OR_RETURN(Value object, Evaluate(*expression.children[0]));
    RETURN_IF_ERROR(CheckDefined(object));
    ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(object));
    const int64_t size = static_cast<int64_t>(items.size());
    std::optional<int64_t> bounds[3];
    for (int i = 0; i < 3; ++i) {
      if (expression.children[i + 1] == nullptr) continue;
      ASSIGN_OR_RETURN(Value bound, Evaluate(*expression.children[i + 1]));
      if (bound.IsNone()) continue;
      if (bound.As<int64_t>() == nullptr) return absl::InvalidArgumentError("slices need whole numbers");
      bounds[i] = *bound.As<int64_t>();
    }
    // One further than the text or list is long does the same as any longer step.
    const int64_t step = std::clamp<int64_t>(bounds[2].value_or(1), -size - 1, size + 1);
    if (step == 0) return absl::InvalidArgumentError("a slice's step must not be 0");
    auto clamp = [&](int64_t bound) {
      if (bound < 0) bound = std::max(bound, -size - 1) + size;
      return step > 0 ? std::clamp<int64_t>(bound, 0, size) : std::clamp<int64_t>(bound, -1, size - 1);
    };
    int64_t begin = bounds[0].has_value() ? clamp(*bounds[0]) : step > 0 ? 0 : size - 1;
    int64_t end = bounds[1].has_value() ? clamp(*bounds[1]) : step > 0 ? size : -1;
    std::vector<Value> out;
    for (int64_t i = begin; step > 0 ? i < end : i > end; i += step) out.push_back(items[i]);
    if (object.AsString() == nullptr) return MakeList(std::move(out));
    std::string text;
    for (const Value& character : out) text += *character.AsString();
    return Value(std::move(text));
  }

  absl::StatusOr<Value> EvaluateBinary(const Expression& expression) {
    const std::string& op = expression.name;
    ASSIGN_OR_RETURN(Value left, Evaluate(*expression.children[0]));
    if (op == "and") return left.Truthy() ? Evaluate(*expression.children[1]) : left;
    if (op == "or") return left.Truthy() ? left : Evaluate(*expression.children[1]);
    ASSIGN_OR_RETURN(Value right, Evaluate(*expression.children[1]));
    if (op == "~") {
      std::string a = ToText(left), b = ToText(right);
      if (a.size() + b.size() > kMaxTextBytes) return TextTooLong();
      return Value(a + b);
    }
    return Arithmetic(op, left, right);
  }

  // a < b < c is a < b and b < c, with b evaluated once.
  absl::StatusOr<Value> EvaluateComparison(const Expression& expression) {
    ASSIGN_OR_RETURN(Value left, Evaluate(*expression.children[0]));
    for (size_t i = 0; i < expression.operators.size(); ++i) {
      ASSIGN_OR_RETURN(Value right, Evaluate(*expression.children[i + 1]));
      ASSIGN_OR_RETURN(bool holds, Holds(expression.operators[i], left, right));
      if (!holds) return Value(false);
      left = std::move(right);
    }
    return Value(true);
  }

  static absl::StatusOr<bool> Holds(const std::string& op, const Value& left, const Value& right) {
    if (op == "==") return Equal(left, right);
    if (op == "!=") return !Equal(left, right);
    if (op == "in" || op == "not in") {
      if (right.AsString() != nullptr && left.AsString() == nullptr)
        return absl::InvalidArgumentError(absl::StrCat(TypeName(left), " cannot be in a text"));
      if (right.IsNone() || right.IsNumber())
        return absl::InvalidArgumentError(absl::StrCat(TypeName(right), " cannot be searched"));
      ASSIGN_OR_RETURN(bool found, ApplyTest("in", left, {{right}, {}}));
      return found == (op == "in");
    }
    ASSIGN_OR_RETURN(int order, Compare(left, right));
    return op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
  }

  absl::StatusOr<Value> Arithmetic(const std::string& op, const Value& left, const Value& right) {
    if (op == "+" && left.AsString() != nullptr && right.AsString() != nullptr) {
      if (left.AsString()->size() + right.AsString()->size() > kMaxTextBytes) return TextTooLong();
      return Value(*left.AsString() + *right.AsString());
    }
    if (op == "+" && left.AsList() != nullptr && right.AsList() != nullptr) {
      std::vector<Value> items = left.AsList()->items;
      items.insert(items.end(), right.AsList()->items.begin(), right.AsList()->items.end());
      if (items.size() > kMaxItems) return ListTooLong();
      return MakeList(std::move(items));
    }
    if (op == "*" && left.AsString() != nullptr && right.As<int64_t>() != nullptr) {
      int64_t count = std::max<int64_t>(0, *right.As<int64_t>());
      if (count > 0 && left.AsString()->size() > kMaxTextBytes / count) return TextTooLong();
      const std::string& part = *left.AsString();
      if (part.size() <= 1) return Value(part.empty() ? std::string() : std::string(count, part[0]));
      std::string text;
      for (int64_t i = 0; i < count; ++i) text += part;
      return Value(std::move(text));
    }
    if (!left.IsNumber() || !right.IsNumber()) {
      return absl::InvalidArgumentError(absl::StrCat("cannot compute ", TypeName(left), " ", op, " ", TypeName(right)));
    }
    const bool whole = left.As<double>() == nullptr && right.As<double>() == nullptr;
    const double a = left.ToDouble(), b = right.ToDouble();
    if ((op == "/" || op == "//" || op == "%") && b == 0) return absl::InvalidArgumentError("division by zero");
    double result = op == "+"    ? a + b
                    : op == "-"  ? a - b
                    : op == "*"  ? a * b
                    : op == "/"  ? a / b
                    : op == "//" ? std::floor(a / b)
                    : op == "%"  ? a - b * std::floor(a / b)
                                 : std::pow(a, b);
    if (whole && op != "/" && std::fabs(result) < 9e15) return Value(static_cast<int64_t>(result));
    return Value(result);
  }

  std::vector<Scope> scopes_;  // Outermost first.
  std::string output_;
  int64_t steps_ = 0;
  size_t bytes_ = 0;
  int depth_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Template>> Template::Parse(absl::string_view source) {
  ASSIGN_OR_RETURN(Block block, jinja::Parse(source));
  return std::unique_ptr<Template>(new Template(std::move(block)));
}

absl::StatusOr<std::string> Template::Render(std::vector<std::pair<std::string, Value>> variables) const {
  return Interpreter(std::move(variables)).Run(block_);
}

}  // namespace tandem::jinja
