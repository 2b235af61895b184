#include "model/jinja/parser.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/expression_parser.h"
#include "model/jinja/lexer.h"

namespace tandem::jinja {
namespace {

class Parser final : private ExpressionParser {
 public:
  explicit Parser(std::vector<Token> tokens) : ExpressionParser(std::move(tokens)) {}

  absl::StatusOr<Block> ParseAll() {
    ASSIGN_OR_RETURN(Block block, ParseBlock({}));
    if (Peek().kind != Token::Kind::kEnd) return Error(absl::StrCat("unexpected \"", Peek(1).text, "\""));
    return block;
  }

 private:
  // Statements until a block tag whose name is in `ends`; that tag is left.
  absl::StatusOr<Block> ParseBlock(std::vector<absl::string_view> ends) {
    Depth depth(depth_);
    if (depth_ > kMaxDepth) return Error("nested too deep");
    Block block;
    while (Peek().kind != Token::Kind::kEnd) {
      if (Peek().kind == Token::Kind::kBlockBegin &&
          std::any_of(ends.begin(), ends.end(), [&](absl::string_view end) { return IsName(end, 1); })) {
        return block;
      }
      auto statement = std::make_unique<Statement>();
      statement->line = Peek().line;
      if (Peek().kind == Token::Kind::kText) {
        statement->text = Next().text;
      } else if (Peek().kind == Token::Kind::kOutputBegin) {
        Next();
        statement->kind = Statement::Kind::kOutput;
        ASSIGN_OR_RETURN(statement->expression, ParseExpression());
        if (Peek().kind != Token::Kind::kOutputEnd)
          return Error(absl::StrCat("expected \"}}\", found \"", Peek().text, "\""));
        Next();
      } else if (Peek().kind == Token::Kind::kBlockBegin) {
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
};

}  // namespace

absl::StatusOr<Block> Parse(absl::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).ParseAll();
}

}  // namespace tandem::jinja
