#include "model/jinja/parser.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/lexer.h"

namespace tandem::jinja {
namespace {

constexpr int kMaxDepth = 100;
using Kind = Token::Kind;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<Block> ParseAll() {
    ASSIGN_OR_RETURN(Block block, ParseBlock({}));
    if (Peek().kind != Kind::kEnd) return Error(absl::StrCat("unexpected \"", Peek(1).text, "\""));
    return block;
  }

 private:
  // Counts nesting; every recursive rule goes through one.
  struct Depth {
    explicit Depth(int& counter) : count(counter) { ++count; }
    ~Depth() { --count; }
    int& count;
  };

  const Token& Peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  Token Next() {
    Token token = Peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("line ", Peek().line, ": ", what));
  }
  bool IsOperator(absl::string_view text) const {
    return Peek().kind == Kind::kOperator && Peek().text == text;
  }
  bool IsName(absl::string_view text, size_t ahead = 0) const {
    return Peek(ahead).kind == Kind::kName && Peek(ahead).text == text;
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
    return TakeOperator(text)
               ? absl::OkStatus()
               : Error(absl::StrCat("expected \"", text, "\", found \"", Peek().text, "\""));
  }
  absl::Status ExpectBlockEnd() {
    if (Peek().kind != Kind::kBlockEnd)
      return Error(absl::StrCat("expected the end of the tag, found \"", Peek().text, "\""));
    Next();
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> ExpectName() {
    if (Peek().kind != Kind::kName)
      return Error(absl::StrCat("expected a name, found \"", Peek().text, "\""));
    return Next().text;
  }

  // Statements until a block tag whose name is in `ends`; that tag is left.
  absl::StatusOr<Block> ParseBlock(std::vector<absl::string_view> ends) {
    Depth depth(depth_);
    if (depth_ > kMaxDepth) return Error("nested too deep");
    Block block;
    while (Peek().kind != Kind::kEnd) {
      if (Peek().kind == Kind::kBlockBegin &&
          std::any_of(ends.begin(), ends.end(),
                      [&](absl::string_view end) { return IsName(end, 1); })) {
        return block;
      }
      auto statement = std::make_unique<Statement>();
      statement->line = Peek().line;
      if (Peek().kind == Kind::kText) {
        statement->text = Next().text;
      } else if (Peek().kind == Kind::kOutputBegin) {
        Next();
        statement->kind = Statement::Kind::kOutput;
        ASSIGN_OR_RETURN(statement->expression, ParseExpression());
        if (Peek().kind != Kind::kOutputEnd)
          return Error(absl::StrCat("expected \"}}\", found \"", Peek().text, "\""));
        Next();
      } else if (Peek().kind == Kind::kBlockBegin) {
        Next();
        RETURN_IF_ERROR(ParseStatement(*statement));
      } else {
        return Error(absl::StrCat("unexpected \"", Peek().text, "\""));
      }
      block.push_back(std::move(statement));
    }
    if (!ends.empty()) return Error(absl::StrCat("a tag \"", ends.back(), "\" is missing"));
    return block;
  }

  absl::Status EndTag(absl::string_view name) {
    Next();  // The begin of the tag.
    if (!TakeName(name)) return Error(absl::StrCat("expected \"", name, "\""));
    return ExpectBlockEnd();
  }

  absl::Status ParseStatement(Statement& statement) {
    ASSIGN_OR_RETURN(std::string name, ExpectName());
    if (name == "if") return ParseIf(statement);
    if (name == "for") return ParseFor(statement);
    if (name == "set") return ParseSet(statement);
    if (name == "macro") return ParseMacro(statement);
    if (name == "break" || name == "continue") {
      statement.kind = name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue;
      return ExpectBlockEnd();
    }
    if (name == "generation") {
      statement.kind = Statement::Kind::kScope;
      RETURN_IF_ERROR(ExpectBlockEnd());
      ASSIGN_OR_RETURN(Block block, ParseBlock({"endgeneration"}));
      statement.blocks.push_back(std::move(block));
      return EndTag("endgeneration");
    }
    return Error(absl::StrCat("tag \"", name, "\" is not in the subset"));
  }

  absl::Status ParseIf(Statement& statement) {
    statement.kind = Statement::Kind::kIf;
    ASSIGN_OR_RETURN(ExpressionPtr condition, ParseExpression());
    statement.conditions.push_back(std::move(condition));
    RETURN_IF_ERROR(ExpectBlockEnd());
    while (true) {
      ASSIGN_OR_RETURN(Block block, ParseBlock({"elif", "else", "endif"}));
      statement.blocks.push_back(std::move(block));
      Next();
      if (TakeName("elif")) {
        ASSIGN_OR_RETURN(ExpressionPtr next, ParseExpression());
        statement.conditions.push_back(std::move(next));
        RETURN_IF_ERROR(ExpectBlockEnd());
      } else if (TakeName("else")) {
        RETURN_IF_ERROR(ExpectBlockEnd());
        ASSIGN_OR_RETURN(Block last, ParseBlock({"endif"}));
        statement.blocks.push_back(std::move(last));
        return EndTag("endif");
      } else {
        TakeName("endif");
        return ExpectBlockEnd();
      }
    }
  }

  absl::Status ParseTargets(Statement& statement) {
    do {
      bool parenthesis = TakeOperator("(");
      ASSIGN_OR_RETURN(std::string target, ExpectName());
      statement.targets.push_back(std::move(target));
      if (parenthesis && IsOperator(")")) Next();
    } while (TakeOperator(","));
    TakeOperator(")");
    return absl::OkStatus();
  }

  absl::Status ParseFor(Statement& statement) {
    statement.kind = Statement::Kind::kFor;
    RETURN_IF_ERROR(ParseTargets(statement));
    if (!TakeName("in")) return Error("expected \"in\"");
    ASSIGN_OR_RETURN(statement.expression,
                     ParseOr());  // No conditional: its "if" filters the loop.
    if (TakeName("if")) {
      ASSIGN_OR_RETURN(ExpressionPtr condition, ParseExpression());
      statement.conditions.push_back(std::move(condition));
    }
    RETURN_IF_ERROR(ExpectBlockEnd());
    ASSIGN_OR_RETURN(Block body, ParseBlock({"else", "endfor"}));
    statement.blocks.push_back(std::move(body));
    if (IsName("else", 1)) {
      RETURN_IF_ERROR(EndTag("else"));
      ASSIGN_OR_RETURN(Block otherwise, ParseBlock({"endfor"}));
      statement.blocks.push_back(std::move(otherwise));
    }
    return EndTag("endfor");
  }

  absl::Status ParseSet(Statement& statement) {
    statement.kind = Statement::Kind::kSet;
    RETURN_IF_ERROR(ParseTargets(statement));
    if (TakeOperator(".")) {
      ASSIGN_OR_RETURN(statement.attribute, ExpectName());
    }
    if (TakeOperator("=")) {
      ASSIGN_OR_RETURN(statement.expression, ParseExpression());
      if (IsOperator(",")) {  // A tuple without parentheses.
        auto tuple = NewExpression(Expression::Kind::kTuple);
        tuple->children.push_back(std::move(statement.expression));
        while (TakeOperator(",")) {
          ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression());
          tuple->children.push_back(std::move(item));
        }
        statement.expression = std::move(tuple);
      }
      return ExpectBlockEnd();
    }
    statement.kind = Statement::Kind::kSetBlock;
    RETURN_IF_ERROR(ExpectBlockEnd());
    ASSIGN_OR_RETURN(Block body, ParseBlock({"endset"}));
    statement.blocks.push_back(std::move(body));
    return EndTag("endset");
  }

  absl::Status ParseMacro(Statement& statement) {
    statement.kind = Statement::Kind::kMacro;
    ASSIGN_OR_RETURN(statement.text, ExpectName());
    RETURN_IF_ERROR(ExpectOperator("("));
    while (!IsOperator(")")) {
      ASSIGN_OR_RETURN(std::string parameter, ExpectName());
      statement.targets.push_back(std::move(parameter));
      ExpressionPtr value;
      if (TakeOperator("=")) {
        ASSIGN_OR_RETURN(value, ParseExpression());
      }
      statement.conditions.push_back(std::move(value));
      if (!TakeOperator(",")) break;
    }
    RETURN_IF_ERROR(ExpectOperator(")"));
    RETURN_IF_ERROR(ExpectBlockEnd());
    ASSIGN_OR_RETURN(Block body, ParseBlock({"endmacro"}));
    statement.blocks.push_back(std::move(body));
    return EndTag("endmacro");
  }

  // --- Expressions, loosest first ---

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
      conditional->children.push_back(std::move(value));
      conditional->children.push_back(std::move(condition));
      conditional->children.push_back(std::move(otherwise));
      value = std::move(conditional);
    }
    return value;
  }

  ExpressionPtr Binary(std::string name, ExpressionPtr left, ExpressionPtr right) {
    auto binary = NewExpression(Expression::Kind::kBinary);
    binary->name = std::move(name);
    binary->children.push_back(std::move(left));
    binary->children.push_back(std::move(right));
    return binary;
  }

  absl::StatusOr<ExpressionPtr> ParseOr() {
    ASSIGN_OR_RETURN(ExpressionPtr left, ParseAnd());
    while (TakeName("or")) {
      ASSIGN_OR_RETURN(ExpressionPtr right, ParseAnd());
      left = Binary("or", std::move(left), std::move(right));
    }
    return left;
  }

  absl::StatusOr<ExpressionPtr> ParseAnd() {
    ASSIGN_OR_RETURN(ExpressionPtr left, ParseNot());
    while (TakeName("and")) {
      ASSIGN_OR_RETURN(ExpressionPtr right, ParseNot());
      left = Binary("and", std::move(left), std::move(right));
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
    ASSIGN_OR_RETURN(ExpressionPtr left, ParseSum());
    while (true) {
      std::string name;
      for (absl::string_view op : {"==", "!=", "<", "<=", ">", ">="}) {
        if (IsOperator(op)) name = std::string(op);
      }
      if (IsName("in")) name = "in";
      if (IsName("not") && IsName("in", 1)) name = "not in";
      if (name.empty()) return left;
      Next();
      if (name == "not in") Next();
      ASSIGN_OR_RETURN(ExpressionPtr right, ParseSum());
      left = Binary(name == "not in" ? "in" : name, std::move(left), std::move(right));
      if (name == "not in") {
        auto negation = NewExpression(Expression::Kind::kNot);
        negation->children.push_back(std::move(left));
        left = std::move(negation);
      }
    }
  }

  absl::StatusOr<ExpressionPtr> ParseLeftToRight(
      std::vector<absl::string_view> operators,
      absl::StatusOr<ExpressionPtr> (Parser::*operand)()) {
    ASSIGN_OR_RETURN(ExpressionPtr left, (this->*operand)());
    while (Peek().kind == Kind::kOperator &&
           std::find(operators.begin(), operators.end(), absl::string_view(Peek().text)) !=
               operators.end()) {
      std::string name = Next().text;
      ASSIGN_OR_RETURN(ExpressionPtr right, (this->*operand)());
      left = Binary(std::move(name), std::move(left), std::move(right));
    }
    return left;
  }
  absl::StatusOr<ExpressionPtr> ParseSum() {
    return ParseLeftToRight({"+", "-"}, &Parser::ParseConcatenation);
  }
  absl::StatusOr<ExpressionPtr> ParseConcatenation() {
    return ParseLeftToRight({"~"}, &Parser::ParseProduct);
  }
  absl::StatusOr<ExpressionPtr> ParseProduct() {
    return ParseLeftToRight({"*", "/", "//", "%"}, &Parser::ParsePower);
  }

  absl::StatusOr<ExpressionPtr> ParsePower() {
    ASSIGN_OR_RETURN(ExpressionPtr value, ParseUnary());
    while (TakeOperator("**")) {
      ASSIGN_OR_RETURN(ExpressionPtr exponent, ParseUnary());
      value = Binary("**", std::move(value), std::move(exponent));
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
        filter->children.push_back(std::move(value));
        if (IsOperator("(")) RETURN_IF_ERROR(ParseArguments(filter->arguments));
        value = std::move(filter);
        ASSIGN_OR_RETURN(value, ParseTrailers(std::move(value)));
      } else if (IsName("is")) {
        auto test = NewExpression(Expression::Kind::kTest);
        Next();
        const bool negated = TakeName("not");
        ASSIGN_OR_RETURN(test->name, ExpectName());
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
      case Kind::kString:
      case Kind::kInteger:
      case Kind::kFloat:
        return true;
      case Kind::kName:
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
      if (Peek().kind == Kind::kName && Peek(1).kind == Kind::kOperator && Peek(1).text == "=") {
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
        if (Peek().kind == Kind::kInteger) {
          attribute->name = Next().text;
        } else {
          ASSIGN_OR_RETURN(attribute->name, ExpectName());
        }
        attribute->children.push_back(std::move(value));
        value = std::move(attribute);
      } else if (IsOperator("[")) {
        ASSIGN_OR_RETURN(value, ParseSubscript(std::move(value)));
      } else if (IsOperator("(")) {
        auto call = NewExpression(Expression::Kind::kCall);
        RETURN_IF_ERROR(ParseArguments(call->arguments));
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
    index->children.push_back(std::move(value));
    if (index->kind == Expression::Kind::kIndex && parts[0] == nullptr)
      return Error("an index is missing");
    for (int i = 0; i < (index->kind == Expression::Kind::kIndex ? 1 : 3); ++i)
      index->children.push_back(std::move(parts[i]));
    return index;
  }

  absl::StatusOr<ExpressionPtr> ParsePrimary() {
    auto expression = NewExpression(Expression::Kind::kLiteral);
    const Token token = Peek();
    switch (token.kind) {
      case Kind::kString: {
        std::string text;
        while (Peek().kind == Kind::kString) text += Next().text;
        expression->value = Value(std::move(text));
        return expression;
      }
      case Kind::kInteger: {
        int64_t number = 0;
        if (!absl::SimpleAtoi(token.text, &number))
          return Error(absl::StrCat("number ", token.text, " is too large"));
        Next();
        expression->value = Value(number);
        return expression;
      }
      case Kind::kFloat: {
        double number = 0;
        if (!absl::SimpleAtod(token.text, &number))
          return Error(absl::StrCat("no number: ", token.text));
        Next();
        expression->value = Value(number);
        return expression;
      }
      case Kind::kName:
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

  absl::StatusOr<ExpressionPtr> ParseItems(ExpressionPtr list, Expression::Kind kind,
                                           absl::string_view end) {
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

  const std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

absl::StatusOr<Block> Parse(absl::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).ParseAll();
}

}  // namespace tandem::jinja
