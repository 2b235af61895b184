#pragma once

#include "common/sampling_params.h"
#include "common/worker_messages.h"
#include "tandem/v1/worker.pb.h"

namespace tandem {

void EncodeCommands(const CommandFrame& frame, v1::CommandFrame* proto);
CommandFrame DecodeCommands(const v1::CommandFrame& proto);

void EncodeEvents(const EventFrame& frame, v1::EventFrame* proto);
EventFrame DecodeEvents(const v1::EventFrame& proto);

void EncodeSampling(const SamplingParams& sampling, v1::SamplingParams* proto);
// Values are taken as they are; the router checks those of clients.
SamplingParams DecodeSampling(const v1::SamplingParams& proto);
void EncodeToken(const SampledToken& token, v1::GeneratedToken* proto);

}  // namespace tandem
