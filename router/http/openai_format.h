#pragma once

#include "common/sampling_params.h"
#include "router/http/json_fields.h"

// For .cc files only, as json_fields.h is.

namespace tandem {

// What the answer must look like: OpenAI's response_format (text, json_object, json_schema), or structured_outputs
// (json, regex, choice, grammar, json_object) as vLLM has it. Errors, also for older names of the latter, are kept in
// `fields`.
void GetOutputFormat(Fields& fields, SamplingParams& sampling);

}  // namespace tandem
