// What a staged link's owner does with messages that no writer of ours sends.

#include "kvtransfer/ucx/staged_export.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/ucx/staged_messages.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using Kind = StagedHeader::Kind;

constexpr int64_t kPoolBytes = 4096, kChunkBytes = 1024;
constexpr absl::Duration kExportPatience = absl::Seconds(20);

// A writer that says what it is told to say.
class RawWriter : private UcxWorker {
 public:
  explicit RawWriter(std::shared_ptr<UcxContext> context) : UcxWorker(std::move(context)) {}
  ~RawWriter() override {
    std::vector<ucs_status_ptr_t> requests;
    for (StagedRequest& request : requests_) {
      if (ucs_status_ptr_t taken = request.Take(); taken != nullptr) requests.push_back(taken);
    }
    Close(endpoint_, std::move(requests));
    DestroyWorker();
  }
  absl::Status Start(const std::string& owner, bool says_where_it_is) {
    absl::Status status = CreateWorker();
    if (status.ok()) status = TakeStagedMessages(worker(), &RawWriter::OnMessage, this);
    if (!status.ok()) return status;
    absl::StatusOr<ucp_ep_h> endpoint = Connect(owner, &error_);
    if (!endpoint.ok()) return endpoint.status();
    endpoint_ = *endpoint;
    if (says_where_it_is) Send({.kind = Kind::kAddress}, *Address());
    return absl::OkStatus();
  }
  void Send(const StagedHeader& header, std::string bytes) {
    sent_.push_back(std::move(bytes));
    requests_.emplace_back();
    EXPECT_THAT(SendStaged(endpoint_, header, sent_.back().data(), sent_.back().size(), false, requests_.back()),
                IsOk());
  }
  // The chunk of these runs, with `bytes` of data.
  void SendChunk(uint64_t number, const std::vector<ChunkRun>& runs, size_t bytes) {
    Send({.kind = Kind::kRuns, .chunk = number},
         {reinterpret_cast<const char*>(runs.data()), runs.size() * sizeof(ChunkRun)});
    Send({.kind = Kind::kData, .chunk = number}, std::string(bytes, 'x'));
  }
  using UcxWorker::Progress;
  int scattered_ = 0;
  bool refused_ = false;

 private:
  static ucs_status_t OnMessage(void* self, const void* header, size_t, void*, size_t, const ucp_am_recv_param_t*) {
    StagedHeader message;
    std::memcpy(&message, header, sizeof(message));
    auto& writer = *static_cast<RawWriter*>(self);
    writer.scattered_ += message.kind == Kind::kScattered ? 1 : 0;
    writer.refused_ |= message.kind == Kind::kRefused;
    return UCS_OK;
  }
  ucp_ep_h endpoint_ = nullptr;
  absl::Status error_;
  std::list<std::string> sent_;
  std::list<StagedRequest> requests_;
};

class StagedExportTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(owners_, UcxContext::Create(false));
    ASSERT_OK_AND_ASSIGN(writers_, UcxContext::Create(false));
    owner_ = std::make_unique<StagedExport>(owners_, UcxStagedOptions{.chunk_bytes = kChunkBytes, .buffers = 2},
                                            pool_.data(), kPoolBytes);
    ASSERT_THAT(owner_->Start("ucx_staged"), IsOk());
    writer_ = std::make_unique<RawWriter>(writers_);
  }
  void StartWriter(bool says_where_it_is = true) {
    ASSERT_THAT(writer_->Start(owner_->description().address, says_where_it_is), IsOk());
  }
  template <typename Condition>
  bool Await(Condition condition) {
    const absl::Time deadline = Clock::Real().Now() + kExportPatience;
    while (!condition()) {
      if (Clock::Real().Now() > deadline) return false;
      owner_->Progress();
      writer_->Progress();
    }
    return true;
  }
  // The owner takes no chunk any more, says so, and has written nothing.
  void ExpectRefused(const std::string& cause) {
    EXPECT_TRUE(Await([&] { return writer_->refused_; }));
    EXPECT_THAT(owner_->status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(cause)));
    EXPECT_EQ(pool_, std::vector<uint8_t>(kPoolBytes));
  }

  std::vector<uint8_t> pool_ = std::vector<uint8_t>(kPoolBytes);
  std::shared_ptr<UcxContext> owners_, writers_;
  std::unique_ptr<StagedExport> owner_;
  std::unique_ptr<RawWriter> writer_;
};

TEST_F(StagedExportTest, TakesAChunkInPiecesOfAnySize) {
  StartWriter();
  writer_->SendChunk(1, {{100, 7}, {3000, 0}, {200, 900}}, 907);
  writer_->SendChunk(2, {{4000, 96}}, 96);
  ASSERT_TRUE(Await([&] { return writer_->scattered_ == 2; }));
  EXPECT_EQ(std::count(pool_.begin(), pool_.end(), 'x'), 1003);
  EXPECT_EQ(pool_[4095], 'x');
  EXPECT_THAT(owner_->status(), IsOk());
}

TEST_F(StagedExportTest, RunsLongerThanTheirDataAreRefused) {
  StartWriter();
  writer_->SendChunk(1, {{0, 64}, {64, 64}}, 100);
  ExpectRefused("longer than its data");
}

TEST_F(StagedExportTest, RunsOfNegativeLengthAreRefused) {
  StartWriter();
  writer_->SendChunk(1, {{0, -64}}, 64);
  ExpectRefused("longer than its data");
}

TEST_F(StagedExportTest, RunsThatLeaveThePoolAreRefused) {
  StartWriter();
  writer_->SendChunk(1, {{0, 8}, {std::numeric_limits<int64_t>::max() - 4, 16}}, 24);
  EXPECT_TRUE(Await([&] { return writer_->refused_; }));
  EXPECT_THAT(owner_->status(), StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_EQ(pool_, std::vector<uint8_t>(kPoolBytes));
}

TEST_F(StagedExportTest, MoreDataThanABufferHoldsIsRefused) {
  StartWriter();
  writer_->Send({.kind = Kind::kData, .chunk = 1}, std::string(kChunkBytes + 1, 'x'));
  ExpectRefused("more than was offered room");
}

TEST_F(StagedExportTest, MoreChunksThanBuffersAreRefused) {
  StartWriter();
  for (uint64_t chunk = 1; chunk <= 3; ++chunk) writer_->Send({.kind = Kind::kData, .chunk = chunk}, "x");
  ExpectRefused("more than was offered room");
}

TEST_F(StagedExportTest, TheSamePartTwiceIsRefused) {
  StartWriter();
  for (int i = 0; i < 2; ++i) writer_->Send({.kind = Kind::kData, .chunk = 1}, "x");
  ExpectRefused("not understood");
}

TEST_F(StagedExportTest, HalfARunIsRefused) {
  StartWriter();
  writer_->Send({.kind = Kind::kRuns, .chunk = 1}, std::string(sizeof(ChunkRun) / 2, 0));
  ExpectRefused("not understood");
}

TEST_F(StagedExportTest, AKindThatNoWriterSendsIsRefused) {
  StartWriter();
  writer_->Send({.kind = static_cast<Kind>(77)}, "");
  ExpectRefused("not understood");
}

TEST_F(StagedExportTest, AChunkOfAnUnknownWriterFailsTheExport) {
  StartWriter(/*says_where_it_is=*/false);
  writer_->SendChunk(1, {{0, 8}}, 8);
  EXPECT_TRUE(Await([&] { return !owner_->status().ok(); }));
  EXPECT_EQ(pool_, std::vector<uint8_t>(kPoolBytes));
}

}  // namespace
}  // namespace tandem
