#include "engine/cuda/cuda_ops.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/cuda/chunk_attention.h"
#include "engine/cuda/cuda_check.h"
#include "engine/cuda/cuda_tensors.h"
#include "engine/cuda/cuda_weights.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/device_sampler.h"
#include "engine/cuda/few_rows.h"
#include "engine/cuda/gpu_fault.h"
#include "engine/cuda/launch.h"
#include "engine/cuda/many_rows.h"
#include "engine/cuda/moe_kernels.h"
#include "engine/cuda/paged_attention.h"
#include "engine/cuda/rank_link.h"
#include "engine/cuda/row_kernels.h"
#include "engine/cuda/skinny_linear.h"
#include "engine/cuda/step_inputs.h"
#include "engine/cuda/streamed_attention.h"
#include "engine/cuda/streamed_linear.h"

namespace tandem {
namespace {

class CudaOps final : public Ops {
 public:
  static absl::StatusOr<std::unique_ptr<Ops>> Create(const CudaOpsOptions& options, const ModelConfig& config);
  ~CudaOps() override;

  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(absl::Span<const TensorView> parts,
                                                              absl::Span<const TensorView> biases,
                                                              InputPrecision) override;
  absl::StatusOr<std::unique_ptr<VectorWeight>> PrepareVector(const TensorView& tensor) override {
    UseDevice();
    return weights_->Vector(tensor);
  }
  absl::StatusOr<std::unique_ptr<EmbeddingTable>> PrepareEmbedding(const TensorView& tensor) override {
    UseDevice();
    return weights_->Embedding(tensor);
  }
  absl::StatusOr<std::unique_ptr<Activation>> NewActivation(int64_t max_rows, int64_t columns,
                                                            ActivationType type) override {
    ASSIGN_OR_RETURN(DeviceMemory memory,
                     DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, ActivationBytes(max_rows, columns, type)));
    return std::unique_ptr<Activation>(std::make_unique<CudaActivation>(max_rows, columns, type, std::move(memory)));
  }
  absl::StatusOr<std::unique_ptr<Activation>> NewSharedActivation(int64_t max_rows, int64_t columns,
                                                                  ActivationType type) override {
    UseDevice();
    ASSIGN_OR_RETURN(std::unique_ptr<RankMemory> memory,
                     RankMemory::Create(link_->ranks(), ActivationBytes(max_rows, columns, type)));
    return std::unique_ptr<Activation>(std::make_unique<CudaActivation>(max_rows, columns, type, std::move(memory)));
  }

  void RunStep(const StepBatch& batch, const RopeConfig& rope, const AttentionShape& shape,
               absl::FunctionRef<void()> body) override;
  absl::Status RecordSteps(absl::FunctionRef<void(const StepBatch&)> forward,
                           absl::FunctionRef<void(double)> told) override;
  void Finish() override {
    UseDevice();
    CheckCuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }
  std::shared_ptr<const SourceEvent> MarkProgress() override {
    UseDevice();
    return std::make_shared<StreamEvent>(options_.device, stream_);
  }

  void Embed(const EmbeddingTable& table, Activation& out) override {
    EmbedArguments arguments;
    arguments.step = step_;
    arguments.table = static_cast<const CudaEmbedding&>(table).data();
    arguments.samples = link_ != nullptr && link_->ranks().rank() > 0 ? link_->tokens() : sampler_->tokens();
    arguments.frequencies = frequencies_.as<const double>();
    arguments.half_dim = shape_.head_dim / 2;
    arguments.turns = turns_.as<float2>();
    arguments.out = Cuda(out).data();
    arguments.columns = static_cast<int>(out.columns());
    CheckCuda(LaunchEmbed(arguments, stream_), "LaunchEmbed");
  }

  void RmsNorm(const Activation& in, const VectorWeight& weight, float epsilon, int rows, Activation& out) override {
    CheckCuda(LaunchRmsNorm(Cuda(in).data(), Data(weight), epsilon, rows, static_cast<int>(in.columns()),
                            Cuda(out).data(), stream_),
              "LaunchRmsNorm");
  }

  void Linear(const Activation& in, const LinearWeight& weight, int rows, bool add, Activation& out) override {
    if (rows == 0) return;
    SkinnyLinearArguments few = SkinnyCall(in, weight, rows, out);
    few.add = add;
    if (RunFewRows(few)) return;
    many_rows_->Linear(Cuda(in), Cuda(weight), rows, add, Cuda(out));
  }

  void NormLinear(const Activation& in, const VectorWeight& norm, float epsilon, const LinearWeight& weight, int rows,
                  Activation& scratch, Activation& out) override {
    if (rows == 0) return;
    SkinnyLinearArguments call = SkinnyCall(in, weight, rows, out);
    const bool has_norm_before = WantsNormBefore(call, compute_major_);
    call.norm = Data(norm);
    call.epsilon = epsilon;
    if (has_norm_before || !RunFewRows(call)) Ops::NormLinear(in, norm, epsilon, weight, rows, scratch, out);
  }

  void NormGatedLinear(const Activation& in, const VectorWeight& norm, float epsilon, const LinearWeight& weight,
                       int rows, Activation& scratch, Activation& gate_up, Activation& out) override {
    SkinnyLinearArguments call = SkinnyCall(in, weight, rows, out);
    call.is_gated = true;
    const bool has_norm_before = WantsNormBefore(call, compute_major_);
    if (has_norm_before) {
      RmsNorm(in, norm, epsilon, rows, scratch);
      call.in = Cuda(scratch).data();
    } else {
      call.norm = Data(norm);
      call.epsilon = epsilon;
    }
    if (RunFewRows(call)) return;
    if (!has_norm_before) RmsNorm(in, norm, epsilon, rows, scratch);
    if (many_rows_->GatedLinear(Cuda(scratch), Cuda(weight), rows, Cuda(out))) return;
    Linear(scratch, weight, rows, /*add=*/false, gate_up);
    SiluMul(gate_up, rows, out);
  }

  void RopeAndAppendKv(Activation& qkv, const QkNorm& norm, int layer, const KvPoolView& kv) override {
    CheckCuda(LaunchRopeAndAppend(step_, shape_, Rotation(norm), PagesOf(layer, kv), Cuda(qkv).data(), stream_),
              "LaunchRopeAndAppend");
  }

  void PagedAttention(const Activation& qkv, int layer, const KvPoolView& kv, Activation& out) override {
    PagedAttentionArguments arguments = Attention(qkv, layer, kv, out);
    arguments.max_rows = has_chunk_plan_ ? 1 : max_sequence_rows_;
    if (has_single_rows_ || !has_chunk_plan_) LaunchAttention(arguments);
    if (has_chunk_plan_) {
      CheckCuda(chunk_attention_->Attend(layer, arguments.pages, step_.pages, arguments.qkv, step_.rows, arguments.out),
                "ChunkAttention");
    }
  }

  void AttendLogitRows(const Activation& qkv, int layer, const KvPoolView& kv, Activation& out) override {
    PagedAttentionArguments arguments = Attention(qkv, layer, kv, out);
    arguments.step.parts = step_.logit_parts;
    arguments.step.num_parts = step_.num_logit_parts;
    CheckCuda(LaunchPagedAttention(arguments, stream_), "LaunchPagedAttention");
  }

  void AppendAndAttend(Activation& qkv, const QkNorm& norm, int layer, const KvPoolView& kv, Activation& out) override {
    if (max_sequence_rows_ > 1) {
      Ops::AppendAndAttend(qkv, norm, layer, kv, out);
      return;
    }
    PagedAttentionArguments arguments = Attention(qkv, layer, kv, out);
    arguments.rotation = Rotation(norm);
    arguments.appends = true;
    LaunchAttention(arguments);
  }

  void SiluMul(const Activation& gate_up, int rows, Activation& out) override {
    CheckCuda(LaunchSiluMul(Cuda(gate_up).data(), rows, static_cast<int>(out.columns()), Cuda(out).data(), stream_),
              "LaunchSiluMul");
  }

  void Moe(const Activation& in, const Activation& router_logits, const MoeWeights& weights, int rows,
           Activation& out) override;

  void GatherLogitRows(const Activation& in, Activation& out) override {
    if (step_.num_logit_rows == 0) return;
    CheckCuda(LaunchGatherRows(Cuda(in).data(), step_.logit_rows, step_.num_logit_rows, static_cast<int>(in.columns()),
                               Cuda(out).data(), stream_),
              "LaunchGatherRows");
  }

  void AddRanks(const Activation& summand, int rows, Activation& out) override {
    link_->AddRanks(Cuda(summand), rows, Cuda(out));
  }
  void JoinRanks(const Activation& part, int rows, Activation& out) override {
    link_->JoinRanks(Cuda(part), rows, Cuda(out));
  }
  void ShareSamples(int rows) override {
    UseDevice();
    link_->ShareTokens(sampler_->tokens(), rows);
  }
  void Clear(int rows, Activation& out) override {
    CheckCuda(cudaMemsetAsync(Cuda(out).data<void>(), 0, rows * out.columns() * sizeof(Bf16), stream_),
              "cudaMemsetAsync");
  }

  bool SamplesAhead(const SamplingParams& params) const override { return DeviceSampler::SamplesAhead(params); }
  void StartSample(const Activation& logits, absl::Span<const SampleInput> inputs) override {
    UseDevice();
    if (num_steps_++ == fault_.step) CauseGpuFault(fault_.kind, stream_);
    // Nobody reads the logits again.
    sampler_->Start(const_cast<float*>(Cuda(logits).data<const float>()), logits.columns(), inputs);
  }
  std::vector<SampledToken> CollectSamples() override {
    UseDevice();
    return sampler_->Collect();
  }

 private:
  // The experts of a layer, as its kernels find them.
  struct ExpertTables {
    DeviceMemory gate_up, down;
  };
  explicit CudaOps(const CudaOpsOptions& options) : options_(options) {}
  static size_t ActivationBytes(int64_t max_rows, int64_t columns, ActivationType type) {
    return ManyRows::RoundedRows(max_rows) * columns * (type == ActivationType::kFloat ? sizeof(float) : sizeof(Bf16));
  }

  bool RunFewRows(const SkinnyLinearArguments& call) {
    return tandem::RunFewRows(call, multiprocessors_, compute_major_, stream_);
  }
  void UseDevice() const { CheckCuda(cudaSetDevice(options_.device), "cudaSetDevice"); }
  const ExpertTables& TablesOf(const MoeWeights& weights);
  // Returns when the device has it.
  void CopyNow(void* to, const void* from, size_t bytes) {
    CheckCuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    CheckCuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

  HeadRotation Rotation(const QkNorm& norm) const {
    HeadRotation rotation;
    if (norm.q != nullptr) rotation.q_norm = Data(*norm.q);
    if (norm.k != nullptr) rotation.k_norm = Data(*norm.k);
    rotation.epsilon = norm.epsilon;
    rotation.turns = turns_.as<const float2>();
    rotation.adjacent_pairs = adjacent_pairs_;
    return rotation;
  }
  PagedAttentionArguments Attention(const Activation& qkv, int layer, const KvPoolView& kv, Activation& out) const {
    PagedAttentionArguments arguments;
    arguments.step = step_;
    arguments.shape = shape_;
    arguments.pages = PagesOf(layer, kv);
    arguments.qkv = Cuda(qkv).data();
    arguments.partial = partial_.as<float>();
    arguments.arrived = arrived_.as<uint32_t>();
    arguments.out = Cuda(out).data();
    return arguments;
  }

  void LaunchAttention(const PagedAttentionArguments& arguments) {
    // Where the driver does not describe the pages to the copy engine, nothing was enqueued.
    if (IsStreamedAttention(arguments, compute_major_, multiprocessors_) &&
        LaunchStreamedAttention(arguments, multiprocessors_, stream_) == cudaSuccess) {
      return;
    }
    CheckCuda(LaunchPagedAttention(arguments, stream_), "LaunchPagedAttention");
  }

  const CudaOpsOptions options_;
  int multiprocessors_ = 0, compute_major_ = 0;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<CudaWeights> weights_;
  std::unique_ptr<ManyRows> many_rows_;
  std::unique_ptr<StepInputs> inputs_;
  std::unique_ptr<DeviceSampler> sampler_;
  std::unique_ptr<RankLink> link_;  // Null: there is one rank.
  DeviceMemory frequencies_, turns_, partial_, arrived_;
  std::unique_ptr<ChunkAttention> chunk_attention_;  // Null: paged_attention does it all.
  absl::flat_hash_map<const MoeWeights*, ExpertTables> expert_tables_;
  DeviceMemory moe_chosen_, moe_weights_, moe_activated_;

  // Of the step that runs.
  StepView step_;
  HeadShape shape_;
  bool adjacent_pairs_ = false;
  int max_sequence_rows_ = 1;
  bool has_single_rows_ = false, has_chunk_plan_ = false;

  GpuFault fault_;
  int64_t num_steps_ = 0;
  bool is_recording_ = false;
  std::map<int, cudaGraphExec_t> graphs_;  // By rows.
};

absl::StatusOr<std::unique_ptr<Ops>> CudaOps::Create(const CudaOpsOptions& options, const ModelConfig& config) {
  RETURN_IF_ERROR(FreeDeviceBytes(options.device).status());
  std::unique_ptr<CudaOps> ops(new CudaOps(options));
  ops->UseDevice();
  cudaDeviceProp properties;
  CheckCuda(cudaGetDeviceProperties(&properties, options.device), "cudaGetDeviceProperties");
  if (properties.major < 9) {
    return absl::UnimplementedError(absl::StrCat("GPU ", options.device, " (", properties.name,
                                                 ") has compute capability ", properties.major, ".", properties.minor,
                                                 "; 9.0 or newer is needed"));
  }
  if (const char* fault = std::getenv("TANDEM_GPU_FAULT"); fault != nullptr) {
    ASSIGN_OR_RETURN(ops->fault_, ParseGpuFault(fault));
    LogWarning("the GPU will fail on purpose", {{"fault", fault}});
  }
  ops->multiprocessors_ = properties.multiProcessorCount;
  ops->compute_major_ = properties.major;
  CheckCuda(cudaStreamCreateWithFlags(&ops->stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  ASSIGN_OR_RETURN(ops->weights_, CudaWeights::Create(config, ops->compute_major_, options.weight_bytes, ops->stream_));
  ASSIGN_OR_RETURN(ops->many_rows_, ManyRows::Create({.max_rows = options.max_rows,
                                                      .multiprocessors = ops->multiprocessors_,
                                                      .compute_major = ops->compute_major_},
                                                     ops->stream_));
  if (options.ranks != nullptr) {
    ASSIGN_OR_RETURN(ops->link_, RankLink::Create(*options.ranks, options.max_rows, ops->stream_));
  }
  ops->shape_ = {config.num_heads, config.num_kv_heads, config.head_dim};
  const HeadShape& shape = ops->shape_;
  const AttentionSplitter splitter(ops->multiprocessors_, BlocksOfPart(shape));
  ASSIGN_OR_RETURN(ops->inputs_, StepInputs::Create({options.max_rows, options.max_sequences,
                                                     options.max_pages_of_sequence * options.max_sequences},
                                                    splitter, ops->stream_));
  ASSIGN_OR_RETURN(ops->sampler_, DeviceSampler::Create(options.max_rows, ops->stream_));
  const auto allocate = [](DeviceMemory& memory, int64_t bytes) -> absl::Status {
    ASSIGN_OR_RETURN(memory, DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, bytes));
    return absl::OkStatus();
  };
  const int64_t half = config.head_dim / 2;
  const int most_parts = splitter.MostParts(options.max_sequences);
  RETURN_IF_ERROR(allocate(ops->frequencies_, half * sizeof(double)));
  RETURN_IF_ERROR(allocate(ops->turns_, options.max_rows * half * sizeof(float2)));
  const int blocks = ops->multiprocessors_;
  RETURN_IF_ERROR(allocate(
      ops->partial_, std::max(PartialFloats(shape, most_parts), StreamedPartialFloats(shape, blocks)) * sizeof(float)));
  RETURN_IF_ERROR(
      allocate(ops->arrived_, std::max(NumArrived(shape, most_parts), StreamedArrived(blocks)) * sizeof(uint32_t)));
  ASSIGN_OR_RETURN(ops->chunk_attention_,
                   ChunkAttention::Create({.shape = shape,
                                           .layout = options.kv_layout,
                                           .max_pages_of_sequence = options.max_pages_of_sequence,
                                           .max_rows = options.max_rows,
                                           .multiprocessors = ops->multiprocessors_,
                                           .compute_major = ops->compute_major_},
                                          ops->stream_));
  if (config.moe.num_experts > 0) {
    const int64_t pairs = int64_t{options.max_rows} * config.moe.experts_per_token;
    RETURN_IF_ERROR(allocate(ops->moe_chosen_, pairs * sizeof(int32_t)));
    RETURN_IF_ERROR(allocate(ops->moe_weights_, pairs * sizeof(float)));
    RETURN_IF_ERROR(allocate(ops->moe_activated_, pairs * config.moe.intermediate_size * sizeof(Bf16)));
  }
  const std::vector<double> frequencies = config.rope.InverseFrequencies(config.head_dim);
  ops->CopyNow(ops->frequencies_.as<void>(), frequencies.data(), half * sizeof(double));
  ops->adjacent_pairs_ = config.rope.pairing == RopeConfig::Pairing::kAdjacent;
  return std::unique_ptr<Ops>(std::move(ops));
}

CudaOps::~CudaOps() {
  cudaSetDevice(options_.device);
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (auto& [rows, graph] : graphs_) cudaGraphExecDestroy(graph);
  chunk_attention_.reset();
  sampler_.reset();
  inputs_.reset();
  many_rows_.reset();
  weights_.reset();
  link_.reset();
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::StatusOr<std::unique_ptr<LinearWeight>> CudaOps::PrepareLinear(absl::Span<const TensorView> parts,
                                                                     absl::Span<const TensorView> biases,
                                                                     InputPrecision) {
  UseDevice();
  ASSIGN_OR_RETURN(std::unique_ptr<LinearWeight> weight, weights_->Linear(parts, biases));
  RETURN_IF_ERROR(many_rows_->Reserve(weights_->float8_columns(), weights_->few_bit_elements()));
  return weight;
}

void CudaOps::RunStep(const StepBatch& batch, const RopeConfig&, const AttentionShape&,
                      absl::FunctionRef<void()> body) {
  UseDevice();
  const int rows = batch.rows();
  const bool decodes = batch.sequences.size() == rows && batch.logit_rows.size() == rows;
  auto graph = is_recording_ || !decodes ? graphs_.end() : graphs_.lower_bound(rows);
  max_sequence_rows_ = 1;
  has_single_rows_ = false;
  for (const BatchSequence& sequence : batch.sequences) {
    max_sequence_rows_ = std::max(max_sequence_rows_, sequence.num_rows);
    has_single_rows_ |= sequence.num_rows == 1;
  }
  const bool plans_chunks = chunk_attention_ != nullptr && chunk_attention_->Takes(batch);
  step_ = inputs_->Upload(batch, graph == graphs_.end() ? rows : graph->first,
                          /*keeps_whole=*/max_sequence_rows_ > 1 && !plans_chunks);
  if (graph != graphs_.end()) {
    CheckCuda(cudaGraphLaunch(graph->second, stream_), "cudaGraphLaunch");
    return;
  }
  has_chunk_plan_ = plans_chunks && chunk_attention_->Plan(batch);
  if (!is_recording_) {
    body();
    return;
  }
  cudaGraph_t recorded;
  cudaGraphExec_t executable;
  CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  body();
  CheckCuda(cudaStreamEndCapture(stream_, &recorded), "cudaStreamEndCapture");
  CheckCuda(cudaGraphInstantiate(&executable, recorded, 0), "cudaGraphInstantiate");
  CheckCuda(cudaGraphDestroy(recorded), "cudaGraphDestroy");
  CheckCuda(cudaGraphUpload(executable, stream_), "cudaGraphUpload");
  graphs_[rows] = executable;
}

absl::Status CudaOps::RecordSteps(absl::FunctionRef<void(const StepBatch&)> forward,
                                  absl::FunctionRef<void(double)> told) {
  UseDevice();
  // What streams weights through shared memory wants all of it; what reads FP8 or few bits wants a cache.
  const bool streams = compute_major_ == 9 && !many_rows_->has_codes();
  SetUsualDivision(streams ? SharedMemory::kMost : SharedMemory::kCache);
  std::vector<int> sizes;
  const int most = std::min(options_.max_sequences, options_.max_rows);
  for (int rows = 1; rows < most; rows += rows < 4 ? rows : rows < 32 ? 4 : rows < 128 ? 16 : 64) sizes.push_back(rows);
  sizes.push_back(most);
  for (size_t i = 0; i < sizes.size(); ++i) {
    StepBatch batch;
    for (int row = 0; row < sizes[i]; ++row) {
      batch.tokens.push_back(0);
      batch.positions.push_back(0);
      batch.logit_rows.push_back(row);
      batch.sequences.push_back({.first_row = row, .num_rows = 1});
    }
    // Loads kernels, too, which must not happen while recording. Those of algorithms that may not be taken are not to
    // be loaded while ranks wait for each other.
    if (link_ == nullptr) {
      many_rows_->TryAlgorithms([&] { forward(batch); });
    } else {
      forward(batch);
    }
    is_recording_ = true;
    forward(batch);
    is_recording_ = false;
    told(static_cast<double>(i + 1) / static_cast<double>(sizes.size()));
  }
  CheckCuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  return absl::OkStatus();
}

const CudaOps::ExpertTables& CudaOps::TablesOf(const MoeWeights& weights) {
  auto known = expert_tables_.find(&weights);
  if (known != expert_tables_.end()) return known->second;
  const auto make = [this](const std::vector<std::unique_ptr<LinearWeight>>& matrices) {
    std::vector<const Bf16*> pointers;
    for (const auto& matrix : matrices) pointers.push_back(Cuda(*matrix).weight());
    const size_t bytes = pointers.size() * sizeof(const Bf16*);
    absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, bytes);
    CheckCuda(memory.ok() ? cudaSuccess : cudaErrorMemoryAllocation, "cudaMalloc");
    CopyNow(memory->as<void>(), pointers.data(), bytes);
    return *std::move(memory);
  };
  return expert_tables_.emplace(&weights, ExpertTables{make(weights.gate_up), make(weights.down)}).first->second;
}

void CudaOps::Moe(const Activation& in, const Activation& router_logits, const MoeWeights& weights, int rows,
                  Activation& out) {
  const ExpertTables& tables = TablesOf(weights);
  MoeArguments arguments;
  arguments.in = Cuda(in).data();
  arguments.router_logits = Cuda(router_logits).data<const float>();
  arguments.gate_up = tables.gate_up.as<const Bf16* const>();
  arguments.down = tables.down.as<const Bf16* const>();
  arguments.rows = rows;
  arguments.hidden = static_cast<int>(in.columns());
  arguments.width = static_cast<int>(weights.down[0]->in());
  arguments.num_experts = static_cast<int>(weights.down.size());
  arguments.experts_per_token = weights.experts_per_token;
  arguments.normalise_top_k = weights.normalise_top_k;
  arguments.chosen = moe_chosen_.as<int32_t>();
  arguments.weights = moe_weights_.as<float>();
  arguments.activated = moe_activated_.as<Bf16>();
  arguments.out = Cuda(out).data();
  CheckCuda(LaunchMoe(arguments, stream_), "LaunchMoe");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ops>> NewCudaOps(const CudaOpsOptions& options, const ModelConfig& config) {
  return CudaOps::Create(options, config);
}

}  // namespace tandem
