// A loaded model and a conversation, let go in the end; errors as exceptions.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "arguments.h"
#include "moshi.h"

struct Client {
    std::unique_ptr<moshi_model, void (*)(moshi_model*)> model{nullptr, moshi_free};
    std::unique_ptr<moshi_session, void (*)(moshi_session*)> session{nullptr, moshi_session_free};
    moshi_info info{};
};

inline void check(int32_t status) {
    if (status < 0) throw std::runtime_error(moshi_error());
}

// Set by Ctrl-C.
bool interrupted();

// The conversation with a recording. Returns the exit status.
int talk(Client& client, const Arguments& arguments);
#ifdef MOSHI_LIVE
// The conversation by microphone and loudspeaker.
int live(Client& client, const Arguments& arguments);
#endif
