#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/jinja/value.h"

namespace tandem::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct CallArguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};

struct Expression {
  enum class Kind {
    kLiteral,    // value
    kName,       // name
    kList,       // children
    kTuple,      // children
    kDict,       // children: key, value, key, value ...
    kAttribute,  // children[0] . name
    kIndex,      // children[0] [ children[1] ]
    kSlice,      // children[0] [ children[1] : children[2] : children[3] ]; null where absent
    kCall,       // children[0] ( arguments )
    kFilter,     // children[0] | name ( arguments )
    kTest,       // children[0] is name ( arguments )
    kNot,
    kNegate,
    kPlus,         // children[0]
    kBinary,       // children[0] name children[1]; also "and", "or"
    kComparison,   // children[0] operators[0] children[1] operators[1] children[2] ...
    kConditional,  // children[0] if children[1] else children[2]; the last may be null
  };
  Kind kind = Kind::kLiteral;
  int line = 1;
  Value value;
  std::string name;
  std::vector<std::string> operators;
  std::vector<ExpressionPtr> children;
  CallArguments arguments;
  int chain = 0;  // Links of a chain such as a.b.c or a + b + c up to here, each of which holds the one before it.
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

struct Statement {
  enum class Kind {
    kText,      // text
    kOutput,    // expression
    kIf,        // conditions[i] -> blocks[i]; one more block is else
    kFor,       // targets in expression [if conditions[0]]: blocks[0]; blocks[1] is else
    kSet,       // targets = expression; or target.attribute = expression
    kSetBlock,  // targets[0] = output of blocks[0]
    kMacro,     // text ( targets = conditions ): blocks[0]
    kBreak,
    kContinue,
    kScope,  // blocks[0]: {% generation %} and the like, which only group
  };
  Kind kind = Kind::kText;
  int line = 1;
  std::string text;
  std::string attribute;
  std::vector<std::string> targets;
  ExpressionPtr expression;
  std::vector<ExpressionPtr> conditions;  // Of kMacro: defaults, null where there is none.
  std::vector<Block> blocks;
};

}  // namespace tandem::jinja
