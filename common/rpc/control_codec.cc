#include "common/rpc/control_codec.h"

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace tandem {

void EncodeRegistration(const WorkerRegistration& registration, v1::Registration* proto) {
  proto->set_worker_id(registration.worker_id);
  proto->set_incarnation(registration.incarnation.value());
  proto->set_role(std::string(RoleName(registration.role)));
  proto->set_service_address(registration.service_address);
  proto->set_link_address(registration.link_address);
  proto->set_model_fingerprint(registration.model_fingerprint);
  proto->set_total_pages(registration.total_pages);
  proto->set_page_tokens(registration.page_tokens);
  proto->set_max_context_tokens(registration.max_context_tokens);
  proto->set_page_bytes(registration.page_bytes);
  proto->set_domain(registration.domain);
}

absl::StatusOr<WorkerRegistration> DecodeRegistration(const v1::Registration& proto) {
  WorkerRegistration registration;
  registration.worker_id = proto.worker_id();
  registration.incarnation = Incarnation(proto.incarnation());
  registration.service_address = proto.service_address();
  registration.link_address = proto.link_address();
  registration.model_fingerprint = proto.model_fingerprint();
  registration.total_pages = proto.total_pages();
  registration.page_tokens = proto.page_tokens();
  registration.max_context_tokens = proto.max_context_tokens();
  registration.page_bytes = proto.page_bytes();
  registration.domain = proto.domain();
  if (proto.role() == RoleName(Role::kDecode)) {
    registration.role = Role::kDecode;
  } else if (proto.role() != RoleName(Role::kPrefill)) {
    return absl::InvalidArgumentError(absl::StrCat("role: \"", proto.role(), "\" is neither prefill nor decode"));
  }
  if (proto.worker_id().empty()) return absl::InvalidArgumentError("worker_id: is empty");
  if (proto.incarnation() == 0) return absl::InvalidArgumentError("incarnation: is 0");
  if (proto.service_address().empty()) return absl::InvalidArgumentError("service_address: is empty");
  if (proto.page_tokens() < 1) return absl::InvalidArgumentError("page_tokens: must be at least 1");
  if (registration.role == Role::kDecode && proto.link_address().empty()) {
    return absl::InvalidArgumentError("link_address: is empty");
  }
  return registration;
}

void EncodeHeartbeat(const WorkerHeartbeat& heartbeat, v1::Heartbeat* proto) {
  proto->set_running_requests(heartbeat.running_requests);
  proto->set_waiting_requests(heartbeat.waiting_requests);
  proto->set_queued_prompt_tokens(heartbeat.queued_prompt_tokens);
  proto->set_free_pages(heartbeat.free_pages);
  for (const auto& [state, count] : heartbeat.pages) (*proto->mutable_pages())[state] = count;
  proto->set_state(heartbeat.state);
  proto->set_turns(heartbeat.turns);
  proto->set_preemptions(heartbeat.preemptions);
  for (const LinkReport& link : heartbeat.links) {
    v1::LinkReport* out = proto->add_links();
    out->set_peer_worker(link.peer_worker);
    out->set_peer_incarnation(link.peer.value());
    out->set_up(link.up);
    out->set_transport(link.transport);
    out->set_gigabytes_per_second(link.gigabytes_per_second);
    out->set_latency_us(link.latency_us);
    out->set_error(link.error);
    out->set_path(link.path);
  }
  proto->mutable_stored_hashes()->Add(heartbeat.stored_hashes.begin(), heartbeat.stored_hashes.end());
  proto->mutable_dropped_hashes()->Add(heartbeat.dropped_hashes.begin(), heartbeat.dropped_hashes.end());
  proto->set_sequence(heartbeat.sequence);
}

WorkerHeartbeat DecodeHeartbeat(const v1::Heartbeat& proto) {
  WorkerHeartbeat heartbeat;
  heartbeat.running_requests = proto.running_requests();
  heartbeat.waiting_requests = proto.waiting_requests();
  heartbeat.queued_prompt_tokens = proto.queued_prompt_tokens();
  heartbeat.free_pages = proto.free_pages();
  for (const auto& [state, count] : proto.pages()) heartbeat.pages.emplace_back(state, count);
  heartbeat.state = proto.state();
  heartbeat.turns = proto.turns();
  heartbeat.preemptions = proto.preemptions();
  for (const v1::LinkReport& link : proto.links()) {
    heartbeat.links.push_back({link.peer_worker(), Incarnation(link.peer_incarnation()), link.up(), link.transport(),
                               link.path(), link.gigabytes_per_second(), link.latency_us(), link.error()});
  }
  heartbeat.stored_hashes.assign(proto.stored_hashes().begin(), proto.stored_hashes().end());
  heartbeat.dropped_hashes.assign(proto.dropped_hashes().begin(), proto.dropped_hashes().end());
  heartbeat.sequence = proto.sequence();
  return heartbeat;
}

void EncodeDirective(const RouterDirective& directive, v1::RouterDirective* proto) {
  for (const DirectedPeer& peer : directive.peers) {
    v1::LinkPeer* out = proto->add_peers();
    out->set_worker_id(peer.worker_id);
    out->set_incarnation(peer.incarnation.value());
    out->set_link_address(peer.link_address);
  }
  proto->set_drain(directive.drain);
  proto->set_start_again(directive.start_again);
  proto->set_tell_all(directive.tell_all);
}

RouterDirective DecodeDirective(const v1::RouterDirective& proto) {
  RouterDirective directive;
  for (const v1::LinkPeer& peer : proto.peers()) {
    directive.peers.push_back({peer.worker_id(), Incarnation(peer.incarnation()), peer.link_address()});
  }
  directive.drain = proto.drain();
  directive.start_again = proto.start_again();
  directive.tell_all = proto.tell_all();
  return directive;
}

}  // namespace tandem
