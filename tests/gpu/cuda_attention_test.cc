// Attention of engine/cuda against sums in double precision on the host, on random data.

#include <cmath>
#include <vector>

#include "engine/cuda/chunk_attention.h"
#include "engine/cuda/paged_attention.h"
#include "engine/cuda/row_kernels.h"
#include "engine/cuda/streamed_attention.h"
#include "gtest/gtest.h"
#include "tests/gpu/attention_rig.h"
#include "tests/gpu/device_values.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using CudaAttentionTest = CudaKernelsTest;

std::vector<AttentionCase> AttentionCases(bool single_rows) {
  std::vector<AttentionCase> cases;
  for (const HeadShape& shape : {HeadShape{4, 2, 32},
                                 {9, 3, 64},
                                 {8, 2, 128},
                                 {8, 1, 64},
                                 {16, 1, 128},
                                 {6, 6, 128},
                                 {32, 8, 128},
                                 {28, 4, 128},
                                 {24, 2, 64}}) {
    for (int page_tokens : {1, 5, 16, 64, 200}) {
      if (page_tokens == 200 && shape.head_dim != 128) continue;
      if (page_tokens != 16 && shape.num_heads > 16) continue;
      if (single_rows) {
        cases.push_back({shape, page_tokens, {{1, 1}}});
        cases.push_back({shape, page_tokens, {{1, 700}}});
        cases.push_back({shape, page_tokens, {{1, 17}, {1, 16}, {1, 333}, {1, 2}, {1, 64}}});
        cases.push_back({shape, page_tokens, {{1, 100}, {1, 4000}, {1, 90}}});
      } else {
        cases.push_back({shape, page_tokens, {{40, 40}}});
        cases.push_back({shape, page_tokens, {{1, 90}, {33, 100}, {130, 260}}});
        cases.push_back({shape, page_tokens, {{1, 2000}, {1, 30}, {33, 100}}});
        if (page_tokens == 16 && shape.num_heads <= 16) cases.push_back({shape, page_tokens, {{300, 500}, {200, 200}}});
      }
    }
  }
  for (size_t i = 0, count = cases.size(); i < count; ++i) {
    if (cases[i].page_tokens != 16) continue;
    cases.push_back(cases[i]);
    cases.back().is_float8 = true;
  }
  return cases;
}

TEST_F(CudaAttentionTest, PagedAttentionAppendsAndAttends) {
  for (const AttentionCase& c : AttentionCases(/*single_rows=*/true)) {
    for (const auto& [multiprocessors, adjacent] : {std::pair{1, false}, {60, true}, {2000, false}}) {
      SCOPED_TRACE(testing::Message() << "heads " << c.shape.num_heads << "/" << c.shape.num_kv_heads << " of "
                                      << c.shape.head_dim << ", pages of " << c.page_tokens << ", "
                                      << c.sequences.size() << " sequences, " << multiprocessors << " multiprocessors"
                                      << (c.is_float8 ? ", FP8" : ""));
      AttentionRig rig(c, random_);
      const int dim = c.shape.head_dim;
      TestPool pool(Random(rig.pool_elements()), c.is_float8);
      Both<Bf16> qkv(Random(size_t(rig.num_rows()) * rig.columns())), q_norm(Random(dim)), k_norm(Random(dim));
      Both<Bf16> out(Random(size_t(rig.num_rows()) * c.shape.num_heads * dim));
      const std::vector<float2> turns = rig.Turns();
      Both<float2> device_turns(turns);
      Both<AttentionPart> parts(rig.Parts(multiprocessors, /*keeps_whole=*/false));
      Both<int32_t> pages(rig.page_table());
      const int count = static_cast<int>(parts.host.size());
      Both<float> partial(std::vector<float>(PartialFloats(c.shape, count)));
      Both<uint32_t> arrived(std::vector<uint32_t>(NumArrived(c.shape, count)));
      PagedAttentionArguments a;
      a.step.parts = parts.device();
      a.step.num_parts = count;
      a.step.pages = pages.device();
      a.step.rows = rig.num_rows();
      a.shape = c.shape;
      a.pages = rig.Pages(pool);
      a.qkv = qkv.device();
      a.rotation.q_norm = q_norm.device();
      a.rotation.k_norm = k_norm.device();
      a.rotation.epsilon = 1e-6f;
      a.rotation.turns = device_turns.device();
      a.rotation.adjacent_pairs = adjacent;
      a.appends = true;
      a.partial = partial.device();
      a.arrived = arrived.device();
      a.out = out.device();
      for (int repeat = 0; repeat < 2; ++repeat) {
        Check(LaunchPagedAttention(a, nullptr));
        Finish();
      }
      std::vector<Bf16> rotated = qkv.host;
      std::vector<Bf16> wanted_pool = pool.values();
      rig.RotateAndAppend(turns, q_norm.host, k_norm.host, adjacent, rotated, wanted_pool);
      ExpectPool(c.is_float8, pool, wanted_pool);
      const std::vector<double> wanted = rig.Attend(rotated, wanted_pool);
      ExpectNear(out.Read(), wanted, 0.02, "out");

      Both<SequenceView> sequences(rig.sequences());
      a.step.sequences = sequences.device();
      a.step.num_sequences = static_cast<int>(sequences.host.size());
      if (!HasStreamedAttention(a, compute_major_)) continue;
      for (int blocks : {1, 7, multiprocessors_}) {
        TestPool other_pool(rig.Spoiled(pool.values()), c.is_float8);
        Both<Bf16> other(std::vector<Bf16>(out.host.size()));
        Both<float> streamed_partial(std::vector<float>(StreamedPartialFloats(c.shape, blocks)));
        Both<uint32_t> streamed_arrived(std::vector<uint32_t>(StreamedArrived(blocks)));
        a.pages = rig.Pages(other_pool);
        a.partial = streamed_partial.device();
        a.arrived = streamed_arrived.device();
        a.out = other.device();
        for (int repeat = 0; repeat < 2; ++repeat) {
          Check(LaunchStreamedAttention(a, blocks, nullptr));
          Finish();
        }
        ExpectNear(other.Read(), wanted, 0.02, "out of the streamed kernel");
        ExpectNear(rig.SlotsOf(other_pool.Read()), Values(rig.SlotsOf(wanted_pool)), 0.01, "slots of the streamed one");
      }
      if (HasFailure()) return;
    }
  }
}

TEST_F(CudaAttentionTest, RowsOfChunksAreRotatedAndAppended) {
  for (const AttentionCase& c : AttentionCases(/*single_rows=*/false)) {
    for (bool adjacent : {false, true}) {
      SCOPED_TRACE(testing::Message() << "heads " << c.shape.num_heads << "/" << c.shape.num_kv_heads << " of "
                                      << c.shape.head_dim << ", pages of " << c.page_tokens
                                      << (c.is_float8 ? ", FP8" : ""));
      AttentionRig rig(c, random_);
      TestPool pool(Random(rig.pool_elements()), c.is_float8);
      Both<Bf16> qkv(Random(size_t(rig.num_rows()) * rig.columns()));
      Both<Bf16> q_norm(Random(c.shape.head_dim)), k_norm(Random(c.shape.head_dim));
      Both<float2> turns(rig.Turns());
      Both<int32_t> pages(rig.page_table()), positions(rig.positions()), sequence_of_row(rig.sequence_of_row());
      Both<SequenceView> sequences(rig.sequences());
      StepView step;
      step.positions = positions.device();
      step.sequence_of_row = sequence_of_row.device();
      step.sequences = sequences.device();
      step.pages = pages.device();
      step.rows = rig.num_rows();
      HeadRotation rotation;
      rotation.q_norm = q_norm.device();
      rotation.k_norm = k_norm.device();
      rotation.epsilon = 1e-6f;
      rotation.turns = turns.device();
      rotation.adjacent_pairs = adjacent;
      Check(LaunchRopeAndAppend(step, c.shape, rotation, rig.Pages(pool), qkv.device(), nullptr));
      Finish();
      std::vector<Bf16> rows = qkv.host, wanted_pool = pool.values();
      rig.RotateAndAppend(turns.host, q_norm.host, k_norm.host, adjacent, rows, wanted_pool);
      ExpectPool(c.is_float8, pool, wanted_pool);
      const std::vector<Bf16> got = qkv.Read();
      std::vector<Bf16> got_queries;
      std::vector<double> queries;
      const int query_columns = c.shape.num_heads * c.shape.head_dim;
      for (int row = 0; row < rig.num_rows(); ++row) {
        for (int column = 0; column < query_columns; ++column) {
          got_queries.push_back(got[size_t(row) * rig.columns() + column]);
          queries.push_back(Value(rows[size_t(row) * rig.columns() + column]));
        }
      }
      ExpectNear(got_queries, queries, 0.01, "queries");
      if (HasFailure()) return;
    }
  }
}

// What does not fit into the memory for widened pages is left to the kernel for single rows.
TEST_F(CudaAttentionTest, ChunksOfMorePagesOfFloat8ThanASequenceHasAreNotTaken) {
  const AttentionCase c = {{8, 2, 128}, 16, {{33, 100}, {130, 260}}, /*is_float8=*/true};
  AttentionRig rig(c, random_);
  for (const auto& [pages, takes] : {std::pair{24, true}, {23, false}}) {  // 7 and 17.
    const auto chunks = ChunkAttention::Create(rig.ChunkOptions(pages, multiprocessors_, compute_major_), nullptr);
    ASSERT_THAT(chunks, IsOk());
    if (*chunks == nullptr) GTEST_SKIP() << "there is no kernel for chunks here";
    EXPECT_EQ((*chunks)->Takes(rig.Batch()), takes);
  }
}

TEST_F(CudaAttentionTest, AttentionOfChunksIsThatOfTheHost) {
  for (const AttentionCase& c : AttentionCases(/*single_rows=*/false)) {
    SCOPED_TRACE(testing::Message() << "heads " << c.shape.num_heads << "/" << c.shape.num_kv_heads << " of "
                                    << c.shape.head_dim << ", pages of " << c.page_tokens << ", " << c.sequences.size()
                                    << " sequences" << (c.is_float8 ? ", FP8" : ""));
    AttentionRig rig(c, random_);
    const int dim = c.shape.head_dim;
    TestPool pool(rig.Spoiled(Random(rig.pool_elements())), c.is_float8);
    Both<Bf16> qkv(Random(size_t(rig.num_rows()) * rig.columns()));
    Both<Bf16> out(std::vector<Bf16>(size_t(rig.num_rows()) * c.shape.num_heads * dim));
    Both<AttentionPart> whole(rig.Parts(132, /*keeps_whole=*/true)), single(rig.Parts(132, /*keeps_whole=*/false));
    Both<int32_t> pages(rig.page_table());
    const int num_parts = static_cast<int>(single.host.size());
    Both<float> partial(std::vector<float>(PartialFloats(c.shape, num_parts)));
    Both<uint32_t> arrived(std::vector<uint32_t>(NumArrived(c.shape, num_parts)));
    PagedAttentionArguments a;
    a.step.parts = whole.device();
    a.step.num_parts = num_parts;
    a.step.pages = pages.device();
    a.step.rows = rig.num_rows();
    a.partial = partial.device();
    a.arrived = arrived.device();
    a.shape = c.shape;
    a.pages = rig.Pages(pool);
    a.qkv = qkv.device();
    a.max_rows = rig.max_rows();
    a.out = out.device();
    Check(LaunchPagedAttention(a, nullptr));
    Finish();
    const std::vector<double> wanted = rig.Attend(qkv.host, pool.values());
    ExpectNear(out.Read(), wanted, 0.02, "by the kernel for single rows");

    // Chunks by the kernel for them, single rows by ours. Few blocks have several tiles each.
    const StepBatch batch = rig.Batch();
    a.step.parts = single.device();
    a.max_rows = 1;
    Both<SequenceView> sequences(rig.sequences());
    Both<float> streamed_partial(std::vector<float>(StreamedPartialFloats(c.shape, multiprocessors_)));
    Both<uint32_t> streamed_arrived(std::vector<uint32_t>(StreamedArrived(multiprocessors_)));
    PagedAttentionArguments streamed = a;
    streamed.step.sequences = sequences.device();
    streamed.step.num_sequences = static_cast<int>(sequences.host.size());
    streamed.partial = streamed_partial.device();
    streamed.arrived = streamed_arrived.device();
    for (int blocks : {multiprocessors_, 3}) {
      Both<Bf16> other(std::vector<Bf16>(size_t(rig.num_rows()) * c.shape.num_heads * dim));
      const int64_t all_pages = static_cast<int64_t>(rig.page_table().size());
      const auto chunks = ChunkAttention::Create(rig.ChunkOptions(all_pages, blocks, compute_major_), nullptr);
      ASSERT_THAT(chunks, IsOk());
      if (*chunks == nullptr) continue;
      ASSERT_TRUE((*chunks)->Takes(batch));
      ASSERT_TRUE((*chunks)->Plan(batch));
      for (int layer = 0; layer < rig.layout().num_layers; ++layer) {
        Check((*chunks)->Attend(layer, a.pages, pages.device(), qkv.device(), rig.num_rows(), other.device()));
      }
      a.out = streamed.out = other.device();
      if (blocks == 3 && HasStreamedAttention(streamed, compute_major_)) {
        Check(LaunchStreamedAttention(streamed, multiprocessors_, nullptr));
      } else {
        Check(LaunchPagedAttention(a, nullptr));
      }
      Finish();
      ExpectNear(other.Read(), wanted, 0.02, "by the kernel for chunks");
    }
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace tandem
