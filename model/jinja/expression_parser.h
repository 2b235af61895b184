#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/status_macros.h"
#include "model/jinja/ast.h"
#include "model/jinja/lexer.h"

namespace tandem::jinja {

// Reads expressions from tokens, one function per level of precedence. For parser.cc, whose statements it is the base
// of; bodies stand here so that the grammar reads from top to bottom.
//
// Thread-safety: not thread-safe.
class ExpressionParser {
 protected:
  static constexpr int kMaxDepth = 100, kMaxChain = 100;
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  // Counts nesting; every recursive rule goes through one.
  struct Depth {
    explicit Depth(int& counter) : count(counter) { ++count; }
    ~Depth() { --count; }
    int& count;
  };

  const Token& Peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  Token Next() {
    Token token = Peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("line ", Peek().line, ": ", what));
  }
  bool IsOperator(absl::string_view text) const { return Peek().kind == Token::Kind::kOperator && Peek().text == text; }
  bool IsName(absl::string_view text, size_t ahead = 0) const {
    return Peek(ahead).kind == Token::Kind::kName && Peek(ahead).text == text;
  }
  bool TakeOperator(absl::string_view text) {
    if (!IsOperator(text)) return false;
    Next();
    return true;
  }
  bool TakeName(absl::string_view text) {
    if (!IsName(text)) return false;
    Next();
    return true;
  }
  absl::Status ExpectOperator(absl::string_view text) {
    return TakeOperator(text) ? absl::OkStatus()
                              : Error(absl::StrCat("expected \"", text, "\", found \"", Peek().text, "\""));
  }
  absl::Status ExpectBlockEnd() {
    if (Peek().kind != Token::Kind::kBlockEnd)
      return Error(absl::StrCat("expected the end of the tag, found \"", Peek().text, "\""));
    Next();
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> ExpectName() {
    if (Peek().kind != Token::Kind::kName) return Error(absl::StrCat("expected a name, found \"", Peek().text, "\""));
    return Next().text;
  }

  // --- The levels of precedence, loosest first ---

  ExpressionPtr NewExpression(Expression::Kind kind) const {
    auto expression = std::make_unique<Expression>();
    expression->kind = kind;
    expression->line = Peek().line;
    return expression;
  }

  absl::StatusOr<ExpressionPtr> ParseExpression() {
    Depth depth(depth_);
    if (depth_ > kMaxDepth) return Error("nested too deep");
    ASSIGN_OR_RETURN(ExpressionPtr value, ParseOr());
    while (IsName("if")) {
      auto conditional = NewExpression(Expression::Kind::kConditional);
      Next();
      ASSIGN_OR_RETURN(ExpressionPtr condition, ParseOr());
      ExpressionPtr otherwise;
      if (TakeName("else")) {
        ASSIGN_OR_RETURN(otherwise, ParseExpression());
      }
      RETURN_IF_ERROR(Link(*conditional, *value));
      conditional->children.push_back(std::move(value));
      conditional->children.push_back(std::move(condition));
      conditional->children.push_back(std::move(otherwise));
      value = std::move(conditional);
    }
    return value;
  }

  // Counts a link whose first child is `inner`. Chains are read by loops, but evaluated and freed by recursion.
  absl::Status Link(Expression& outer, const Expression& inner) const {
    outer.chain = inner.chain + 1;
    return outer.chain > kMaxChain ? Error("nested too deep") : absl::OkStatus();
  }

  absl::StatusOr<ExpressionPtr> Binary(std::string name, ExpressionPtr left, ExpressionPtr right) {
    auto binary = NewExpression(Expression::Kind::kBinary);
    binary->name = std::move(name);
    RETURN_IF_ERROR(Link(*binary, *left));
    binary->children.push_back(std::move(left));
    binary->children.push_back(std::move(right));
    return binary;
  }

  absl::StatusOr<ExpressionPtr> ParseOr() {
    ASSIGN_OR_RETURN(ExpressionPtr left, ParseAnd());
    while (TakeName("or")) {
      ASSIGN_OR_RETURN(ExpressionPtr right, ParseAnd());
      ASSIGN_OR_RETURN(left, Binary("or", std::move(left), std::move(right)));
    }
    return left;
  }

  absl::StatusOr<ExpressionPtr> ParseAnd() {
    ASSIGN_OR_RETURN(ExpressionPtr left, ParseNot());
    while (TakeName("and")) {
      ASSIGN_OR_RETURN(ExpressionPtr right, ParseNot());
      ASSIGN_OR_RETURN(left, Binary("and", std::move(left), std::move(right)));
    }
    return left;
  }

  absl::StatusOr<ExpressionPtr> ParseNot() {
    Depth depth(depth_);
    if (depth_ > kMaxDepth) return Error("nested too deep");
    if (!IsName("not")) return ParseComparison();
    auto negation = NewExpression(Expression::Kind::kNot);
    Next();
    ASSIGN_OR_RETURN(ExpressionPtr operand, ParseNot());
    negation->children.push_back(std::move(operand));
    return negation;
  }

  absl::StatusOr<ExpressionPtr> ParseComparison() {
    ASSIGN_OR_RETURN(ExpressionPtr first, ParseSum());
    ExpressionPtr comparison;
    while (true) {
      std::string name;
      for (absl::string_view op : {"==", "!=", "<", "<=", ">", ">="}) {
        if (IsOperator(op)) name = std::string(op);
      }
      if (IsName("in")) name = "in";
      if (IsName("not") && IsName("in", 1)) name = "not in";
      if (name.empty()) return comparison != nullptr ? std::move(comparison) : std::move(first);
      if (comparison == nullptr) {
        comparison = NewExpression(Expression::Kind::kComparison);
        comparison->children.push_back(std::move(first));
      }
      Next();
      if (name == "not in") Next();
      ASSIGN_OR_RETURN(ExpressionPtr right, ParseSum());
      comparison->operators.push_back(std::move(name));
      comparison->children.push_back(std::move(right));
    }
  }

  absl::StatusOr<ExpressionPtr> ParseLeftToRight(std::vector<absl::string_view> operators,
                                                 absl::StatusOr<ExpressionPtr> (ExpressionParser::*operand)()) {
    ASSIGN_OR_RETURN(ExpressionPtr left, (this->*operand)());
    while (Peek().kind == Token::Kind::kOperator &&
           std::find(operators.begin(), operators.end(), absl::string_view(Peek().text)) != operators.end()) {
      std::string name = Next().text;
      ASSIGN_OR_RETURN(ExpressionPtr right, (this->*operand)());
      ASSIGN_OR_RETURN(left, Binary(std::move(name), std::move(left), std::move(right)));
    }
    return left;
  }
  absl::StatusOr<ExpressionPtr> ParseSum() {
    return ParseLeftToRight({"+", "-"}, &ExpressionParser::ParseConcatenation);
  }
  absl::StatusOr<ExpressionPtr> ParseConcatenation() {
    return ParseLeftToRight({"~"}, &ExpressionParser::ParseProduct);
  }
  absl::StatusOr<ExpressionPtr> ParseProduct() {
    return ParseLeftToRight({"*", "/", "//", "%"}, &ExpressionParser::ParsePower);
  }

  absl::StatusOr<ExpressionPtr> ParsePower() {
    ASSIGN_OR_RETURN(ExpressionPtr value, ParseUnary());
    while (TakeOperator("**")) {
      ASSIGN_OR_RETURN(ExpressionPtr exponent, ParseUnary());
      ASSIGN_OR_RETURN(value, Binary("**", std::move(value), std::move(exponent)));
    }
    return value;
  }

  // As in Jinja, a sign binds tighter than filters and powers: -3|abs is 3 and -2**2 is 4.
  absl::StatusOr<ExpressionPtr> ParseUnary(bool with_filters = true) {
    Depth depth(depth_);
    if (depth_ > kMaxDepth) return Error("nested too deep");
    ExpressionPtr value;
    if (IsOperator("-") || IsOperator("+")) {
      value = NewExpression(IsOperator("-") ? Expression::Kind::kNegate : Expression::Kind::kPlus);
      Next();
      ASSIGN_OR_RETURN(ExpressionPtr operand, ParseUnary(/*with_filters=*/false));
      value->children.push_back(std::move(operand));
    } else {
      ASSIGN_OR_RETURN(value, ParsePostfix());
    }
    return with_filters ? ParseFiltersAndTests(std::move(value)) : std::move(value);
  }

  absl::StatusOr<ExpressionPtr> ParseFiltersAndTests(ExpressionPtr value) {
    while (true) {
      if (TakeOperator("|")) {
        auto filter = NewExpression(Expression::Kind::kFilter);
        ASSIGN_OR_RETURN(filter->name, ExpectName());
        RETURN_IF_ERROR(Link(*filter, *value));
        filter->children.push_back(std::move(value));
        if (IsOperator("(")) RETURN_IF_ERROR(ParseArguments(filter->arguments));
        value = std::move(filter);
        ASSIGN_OR_RETURN(value, ParseTrailers(std::move(value)));
      } else if (IsName("is")) {
        auto test = NewExpression(Expression::Kind::kTest);
        Next();
        const bool negated = TakeName("not");
        ASSIGN_OR_RETURN(test->name, ExpectName());
        RETURN_IF_ERROR(Link(*test, *value));
        test->children.push_back(std::move(value));
        if (IsOperator("(")) {
          RETURN_IF_ERROR(ParseArguments(test->arguments));
        } else if (BeginsOperand()) {
          ASSIGN_OR_RETURN(ExpressionPtr argument, ParsePostfix());
          test->arguments.positional.push_back(std::move(argument));
        }
        value = std::move(test);
        if (negated) {
          auto negation = NewExpression(Expression::Kind::kNot);
          RETURN_IF_ERROR(Link(*negation, *value));
          negation->children.push_back(std::move(value));
          value = std::move(negation);
        }
      } else {
        return value;
      }
    }
  }

  // A test's argument may stand without parentheses: "is divisibleby 3".
  bool BeginsOperand() const {
    switch (Peek().kind) {
      case Token::Kind::kString:
      case Token::Kind::kInteger:
      case Token::Kind::kFloat:
        return true;
      case Token::Kind::kName:
        for (absl::string_view word : {"and", "or", "else", "if", "is", "in", "not", "elif"}) {
          if (IsName(word)) return false;
        }
        return true;
      default:
        return IsOperator("[") || IsOperator("{");
    }
  }

  absl::Status ParseArguments(CallArguments& arguments) {
    RETURN_IF_ERROR(ExpectOperator("("));
    while (!IsOperator(")")) {
      if (Peek().kind == Token::Kind::kName && Peek(1).kind == Token::Kind::kOperator && Peek(1).text == "=") {
        std::string name = Next().text;
        Next();
        ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
        arguments.named.emplace_back(std::move(name), std::move(value));
      } else {
        ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
        arguments.positional.push_back(std::move(value));
      }
      if (!TakeOperator(",")) break;
    }
    return ExpectOperator(")");
  }

  absl::StatusOr<ExpressionPtr> ParsePostfix() {
    ASSIGN_OR_RETURN(ExpressionPtr value, ParsePrimary());
    return ParseTrailers(std::move(value));
  }

  absl::StatusOr<ExpressionPtr> ParseTrailers(ExpressionPtr value) {
    while (true) {
      if (TakeOperator(".")) {
        auto attribute = NewExpression(Expression::Kind::kAttribute);
        if (Peek().kind == Token::Kind::kInteger) {
          attribute->name = Next().text;
        } else {
          ASSIGN_OR_RETURN(attribute->name, ExpectName());
        }
        RETURN_IF_ERROR(Link(*attribute, *value));
        attribute->children.push_back(std::move(value));
        value = std::move(attribute);
      } else if (IsOperator("[")) {
        ASSIGN_OR_RETURN(value, ParseSubscript(std::move(value)));
      } else if (IsOperator("(")) {
        auto call = NewExpression(Expression::Kind::kCall);
        RETURN_IF_ERROR(ParseArguments(call->arguments));
        RETURN_IF_ERROR(Link(*call, *value));
        call->children.push_back(std::move(value));
        value = std::move(call);
      } else {
        return value;
      }
    }
  }

  absl::StatusOr<ExpressionPtr> ParseSubscript(ExpressionPtr value) {
    auto index = NewExpression(Expression::Kind::kIndex);
    Next();
    ExpressionPtr parts[3];
    int part = 0;
    while (!IsOperator("]")) {
      if (TakeOperator(":")) {
        index->kind = Expression::Kind::kSlice;
        if (++part > 2) return Error("a slice has at most three parts");
        continue;
      }
      ASSIGN_OR_RETURN(parts[part], ParseExpression());
      if (!IsOperator(":") && !IsOperator("]")) return Error("expected \"]\"");
    }
    RETURN_IF_ERROR(ExpectOperator("]"));
    RETURN_IF_ERROR(Link(*index, *value));
    index->children.push_back(std::move(value));
    if (index->kind == Expression::Kind::kIndex && parts[0] == nullptr) return Error("an index is missing");
    for (int i = 0; i < (index->kind == Expression::Kind::kIndex ? 1 : 3); ++i)
      index->children.push_back(std::move(parts[i]));
    return index;
  }

  absl::StatusOr<ExpressionPtr> ParsePrimary() {
    auto expression = NewExpression(Expression::Kind::kLiteral);
    const Token token = Peek();
    switch (token.kind) {
      case Token::Kind::kString: {
        std::string text;
        while (Peek().kind == Token::Kind::kString) text += Next().text;
        expression->value = Value(std::move(text));
        return expression;
      }
      case Token::Kind::kInteger: {
        int64_t number = 0;
        if (!absl::SimpleAtoi(token.text, &number)) return Error(absl::StrCat("number ", token.text, " is too large"));
        Next();
        expression->value = Value(number);
        return expression;
      }
      case Token::Kind::kFloat: {
        double number = 0;
        if (!absl::SimpleAtod(token.text, &number)) return Error(absl::StrCat("no number: ", token.text));
        Next();
        expression->value = Value(number);
        return expression;
      }
      case Token::Kind::kName:
        Next();
        if (token.text == "true" || token.text == "True") {
          expression->value = Value(true);
        } else if (token.text == "false" || token.text == "False") {
          expression->value = Value(false);
        } else if (token.text == "none" || token.text == "None") {
          expression->value = Value(None());
        } else {
          expression->kind = Expression::Kind::kName;
          expression->name = token.text;
        }
        return expression;
      default:
        break;
    }
    if (TakeOperator("(")) return ParseParenthesis();
    if (TakeOperator("[")) return ParseItems(std::move(expression), Expression::Kind::kList, "]");
    if (TakeOperator("{")) {
      expression->kind = Expression::Kind::kDict;
      while (!IsOperator("}")) {
        ASSIGN_OR_RETURN(ExpressionPtr key, ParseExpression());
        RETURN_IF_ERROR(ExpectOperator(":"));
        ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
        expression->children.push_back(std::move(key));
        expression->children.push_back(std::move(value));
        if (!TakeOperator(",")) break;
      }
      RETURN_IF_ERROR(ExpectOperator("}"));
      return expression;
    }
    return Error(absl::StrCat("expected a value, found \"", token.text, "\""));
  }

  absl::StatusOr<ExpressionPtr> ParseItems(ExpressionPtr list, Expression::Kind kind, absl::string_view end) {
    list->kind = kind;
    while (!IsOperator(end)) {
      ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression());
      list->children.push_back(std::move(item));
      if (!TakeOperator(",")) break;
    }
    RETURN_IF_ERROR(ExpectOperator(end));
    return list;
  }

  absl::StatusOr<ExpressionPtr> ParseParenthesis() {
    auto tuple = NewExpression(Expression::Kind::kTuple);
    if (TakeOperator(")")) return tuple;
    ASSIGN_OR_RETURN(ExpressionPtr first, ParseExpression());
    if (TakeOperator(")")) return first;
    RETURN_IF_ERROR(ExpectOperator(","));
    tuple->children.push_back(std::move(first));
    return ParseItems(std::move(tuple), Expression::Kind::kTuple, ")");
  }

  int depth_ = 0;

 private:
  const std::vector<Token> tokens_;
  size_t at_ = 0;
};

}  // namespace tandem::jinja
