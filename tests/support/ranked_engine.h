#pragma once

#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "engine/rank_group.h"
#include "gtest/gtest.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/status_matchers.h"

namespace tandem {

// Rank 0 of `size`; the others follow it on threads of their own until it goes.
class RankedEngine {
 public:
  RankedEngine(const std::string& model, Engine::Options options, int size) {
    for (int rank = 1; rank < size; ++rank) {
      followers_.emplace_back([=, name = Name()] {
        const std::unique_ptr<RankGroup> group = Join(name, rank, size);
        EngineFixture follower(model, OfRank(options, group.get()));
        EXPECT_THAT(follower.engine().Follow(), IsOk());
        EXPECT_GT(follower.engine().num_steps(), 0);
      });
    }
    group_ = Join(Name(), 0, size);
    first_ = std::make_unique<EngineFixture>(model, OfRank(options, group_.get()));
  }
  ~RankedEngine() {
    first_.reset();
    group_->SayFarewell();
    group_.reset();
    for (std::thread& follower : followers_) follower.join();
  }
  EngineFixture& first() { return *first_; }

 private:
  static std::string Name() {
    return absl::StrCat("tandem-engines-", getpid(), "-",
                        testing::UnitTest::GetInstance()->current_test_info()->name());
  }
  static std::unique_ptr<RankGroup> Join(const std::string& name, int rank, int size) {
    RankGroup::Options options;
    options.name = name;
    options.rank = rank;
    options.size = size;
    return *RankGroup::Join(options);
  }
  static Engine::Options OfRank(Engine::Options options, RankGroup* group) {
    options.shard = {.rank = group->rank(), .size = group->size()};
    options.ranks = group;
    return options;
  }
  std::unique_ptr<RankGroup> group_;
  std::unique_ptr<EngineFixture> first_;
  std::vector<std::thread> followers_;
};

}  // namespace tandem
