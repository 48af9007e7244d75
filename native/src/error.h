// What goes wrong by a caller's or a file's fault, told in one sentence.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace moshi {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    throw Error(out.str());
}

}  // namespace moshi
