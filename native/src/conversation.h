// Conversations in files: the arrays of a state under their paths, as moshi_mlx.session.conversation_file writes them.
#pragma once

#include <string>

#include "model.h"

namespace moshi {

// Written under another name until it is whole. `pending`: bytes of a character not yet complete; nullptr for a model without a tokenizer.
void write_conversation(const Model& model, const Arrays& state, const std::string* pending, const std::string& path);

struct Conversation {
    Arrays state;
    std::string pending;
};

// The conversation in a file, evaluated, checked against `like`, a state of this model: the file may come from anybody.
Conversation read_conversation(const Model& model, const Arrays& like, const std::string& path);

}  // namespace moshi
