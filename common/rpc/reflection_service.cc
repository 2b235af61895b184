#include "common/rpc/reflection_service.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <grpcpp/grpcpp.h>

#include <deque>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/rpc/server_stream.h"
#include "common/status_macros.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"

namespace tandem {
namespace {

namespace reflection = grpc::reflection::v1alpha;
using google::protobuf::Descriptor;
using google::protobuf::DescriptorPool;
using google::protobuf::FieldDescriptor;
using google::protobuf::FileDescriptor;

absl::StatusOr<const Descriptor*> FindMessage(const std::string& name) {
  const Descriptor* type = DescriptorPool::generated_pool()->FindMessageTypeByName(name);
  if (type == nullptr) return absl::NotFoundError(absl::StrCat("no message \"", name, "\" here"));
  return type;
}

absl::StatusOr<const FileDescriptor*> FindFile(const reflection::ServerReflectionRequest& request) {
  const DescriptorPool* pool = DescriptorPool::generated_pool();
  const FileDescriptor* file = nullptr;
  std::string wanted;
  switch (request.message_request_case()) {
    case reflection::ServerReflectionRequest::kFileByFilename:
      wanted = request.file_by_filename();
      file = pool->FindFileByName(wanted);
      break;
    case reflection::ServerReflectionRequest::kFileContainingSymbol:
      wanted = request.file_containing_symbol();
      file = pool->FindFileContainingSymbol(wanted);
      break;
    case reflection::ServerReflectionRequest::kFileContainingExtension: {
      const reflection::ExtensionRequest& extension = request.file_containing_extension();
      ASSIGN_OR_RETURN(const Descriptor* type, FindMessage(extension.containing_type()));
      wanted = absl::StrCat("extension ", extension.extension_number(), " of ", extension.containing_type());
      if (const FieldDescriptor* field = pool->FindExtensionByNumber(type, extension.extension_number())) {
        file = field->file();
      }
      break;
    }
    default:
      return absl::InvalidArgumentError("message_request: asks for no file");
  }
  if (file == nullptr) return absl::NotFoundError(absl::StrCat("no \"", wanted, "\" here"));
  return file;
}

// The file and all that it imports, each once.
void AddFiles(const FileDescriptor* file, reflection::FileDescriptorResponse* response) {
  absl::flat_hash_set<const FileDescriptor*> seen = {file};
  std::deque<const FileDescriptor*> waiting = {file};
  for (; !waiting.empty(); waiting.pop_front()) {
    google::protobuf::FileDescriptorProto proto;
    waiting.front()->CopyTo(&proto);
    response->add_file_descriptor_proto(proto.SerializeAsString());
    for (int i = 0; i < waiting.front()->dependency_count(); ++i) {
      const FileDescriptor* imported = waiting.front()->dependency(i);
      if (seen.insert(imported).second) waiting.push_back(imported);
    }
  }
}

absl::Status Answer(const reflection::ServerReflectionRequest& request, const std::vector<std::string>& services,
                    reflection::ServerReflectionResponse* response) {
  switch (request.message_request_case()) {
    case reflection::ServerReflectionRequest::kFileByFilename:
    case reflection::ServerReflectionRequest::kFileContainingSymbol:
    case reflection::ServerReflectionRequest::kFileContainingExtension: {
      ASSIGN_OR_RETURN(const FileDescriptor* file, FindFile(request));
      AddFiles(file, response->mutable_file_descriptor_response());
      return absl::OkStatus();
    }
    case reflection::ServerReflectionRequest::kAllExtensionNumbersOfType: {
      ASSIGN_OR_RETURN(const Descriptor* type, FindMessage(request.all_extension_numbers_of_type()));
      response->mutable_all_extension_numbers_response()->set_base_type_name(type->full_name());
      std::vector<const FieldDescriptor*> extensions;
      DescriptorPool::generated_pool()->FindAllExtensions(type, &extensions);
      for (const FieldDescriptor* extension : extensions) {
        response->mutable_all_extension_numbers_response()->add_extension_number(extension->number());
      }
      return absl::OkStatus();
    }
    case reflection::ServerReflectionRequest::kListServices:
      for (const std::string& service : services) {
        response->mutable_list_services_response()->add_service()->set_name(service);
      }
      return absl::OkStatus();
    case reflection::ServerReflectionRequest::MESSAGE_REQUEST_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("message_request: not set");
}

class ReflectionServiceParts final : public ReflectionService {
 public:
  explicit ReflectionServiceParts(std::vector<std::string> services) : services_(std::move(services)) {}
  grpc::Service* service() override { return &service_; }
  void Start(CompletionLoop& loop) override {
    loop_ = &loop;
    AwaitStream();
  }

 private:
  class Stream;
  void AwaitStream();

  const std::vector<std::string> services_;
  reflection::ServerReflection::AsyncService service_;
  CompletionLoop* loop_ = nullptr;
};

class ReflectionServiceParts::Stream final
    : public ServerStream<reflection::ServerReflectionRequest, reflection::ServerReflectionResponse> {
 public:
  explicit Stream(ReflectionServiceParts& owner) : ServerStream(Reading::kAfterAnswers), owner_(owner) {}

 private:
  void OnOpen() override { owner_.AwaitStream(); }
  bool IsForProcesses() const override { return false; }
  void OnMessage(reflection::ServerReflectionRequest& request) override {
    reflection::ServerReflectionResponse response;
    response.set_valid_host(request.host());
    *response.mutable_original_request() = request;
    if (absl::Status status = Answer(request, owner_.services_, &response); !status.ok()) {
      response.mutable_error_response()->set_error_code(static_cast<int>(status.code()));
      response.mutable_error_response()->set_error_message(std::string(status.message()));
    }
    Send([&](reflection::ServerReflectionResponse& out) { out = std::move(response); });
  }

  ReflectionServiceParts& owner_;
};

void ReflectionServiceParts::AwaitStream() {
  std::make_shared<Stream>(*this)->Await(
      *loop_, [this](auto... arguments) { service_.RequestServerReflectionInfo(arguments...); });
}

}  // namespace

std::unique_ptr<ReflectionService> ReflectionService::Create(std::vector<std::string> services) {
  return std::make_unique<ReflectionServiceParts>(std::move(services));
}

}  // namespace tandem
