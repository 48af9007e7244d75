#include "conversation.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "error.h"
#include "mlx/io.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "safetensors.h"

namespace mx = mlx::core;
namespace fs = std::filesystem;

namespace moshi {

namespace {

const std::string text_name = "text", ending = ".safetensors";
const std::string tokens_name = state_prefix + "lm.tokens";
// Positions beyond any conversation, far from where 32 bits would end.
constexpr int32_t last_position = 1 << 30, ungenerated = -2;

bool is_ring(const Manifest& m, const std::string& name) {
    const auto& names = m.rings->names;
    return std::find(names.begin(), names.end(), name) != names.end();
}

std::string shown(const mx::Shape& shape) {
    std::string out = "[";
    for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + "]";
}

[[noreturn]] void refuse_capacity(const Manifest& m, int64_t slots, const std::string& path) {
    fail(path, " has key/value rings of ", slots, " slots, this folder was exported for ", m.rings->capacities.back(), "; export it with --capacities or another --context");
}

// The same type and, but for the slots of a ring, the same shape.
void check_form(const Manifest& m, const std::string& name, const mx::array& own, mx::array& found, const std::string& path) {
    if (!is_ring(m, name)) {
        // An encoder's clock that was a list of one is the same clock.
        if (found.size() == own.size() && own.ndim() == 0) found = mx::reshape(found, own.shape());
    }
    mx::Shape expected = own.shape();
    if (is_ring(m, name) && found.ndim() == own.ndim()) {
        int slots = found.shape(m.rings->axis);
        if (slots > m.rings->capacities.back()) refuse_capacity(m, slots, path);
        expected[size_t(m.rings->axis)] = slots;
    }
    if (found.shape() != expected || found.dtype() != own.dtype())
        fail(path, " was saved with another model or other options: ", name.substr(state_prefix.size()), " is ", shown(found.shape()), ", expected ", shown(expected),
             found.dtype() != own.dtype() ? " of another type" : "");
}

// What no step could have left: numbers that are none, and indices outside of their tables, which a graph does not check.
void check_numbers(const Manifest& m, const std::string& name, const mx::array& array, const std::string& path) {
    std::string told = name.substr(state_prefix.size());
    if (mx::issubdtype(array.dtype(), mx::floating) && !mx::all(mx::isfinite(array)).item<bool>()) fail(path, " is damaged: ", told, " holds NaN or infinity");
    if (array.dtype() != mx::int32) return;
    std::vector<int32_t> found = values<int32_t>(array);
    bool is_tokens = name == tokens_name;
    size_t columns = is_tokens ? size_t(array.shape(2)) : 0;
    for (size_t i = 0; i < found.size(); ++i) {
        int32_t low = is_tokens ? ungenerated : 0, high = is_tokens ? (i / columns ? m.card : m.text_card) : last_position;
        if (found[i] < low || found[i] > high) fail(path, " is damaged: ", told, " holds ", found[i], ", expected ", low, " to ", high);
    }
}

// Tokens that the next frames give to the codec, which knows codes only. Column j of a channel holds position offset - delay + j.
void check_codes(const Manifest& m, const mx::array& tokens, int32_t offset, const std::string& path) {
    std::vector<int32_t> found = values<int32_t>(tokens);
    const int columns = tokens.shape(2);
    for (int channel = 1; channel <= m.codebooks; ++channel)
        for (int column = m.delays[size_t(channel)] + 1; column < columns; ++column) {
            int32_t position = offset - m.delay + column, code = found[size_t(channel * columns + column)];
            bool spoken = position > m.delays[size_t(channel)] && position <= offset;
            if (spoken && (code < 0 || code >= m.card))
                fail(path, " is damaged: lm.tokens holds ", code, " where a code of the next frames should be, 0 to ", m.card - 1);
        }
}

// The codec's clocks count whole frames, and no more than there were.
void check_clocks(const Manifest& m, const Arrays& state, int32_t offset, const std::string& path) {
    for (const auto& [name, array] : state) {
        bool is_codec = name.starts_with(state_prefix + "encoder.") || name.starts_with(state_prefix + "decoder.");
        if (!is_codec || array.dtype() != mx::int32) continue;
        for (int32_t position : values<int32_t>(array))
            if (position % m.stride || position / m.stride > offset) fail(path, " is damaged: a clock of the codec stands at ", position, " after ", offset, " frames");
    }
}

void fit_rings(const Model& model, Arrays& state, const std::string& path) {
    const RingsInfo& rings = *model.manifest().rings;
    int64_t capacity = model.capacity(state);
    for (const std::string& name : rings.names)
        if (state.at(name).shape(rings.axis) != capacity) fail(path, " is damaged: its rings are of different sizes");
    auto position = values<int32_t>(state.at(state_prefix + "lm.trunk.position"))[0], offset = values<int32_t>(state.at(state_prefix + "lm.offset"))[0];
    if (position != offset) fail(path, " is damaged: its clocks stand at ", offset, " and ", position);
    check_codes(model.manifest(), state.at(tokens_name), offset, path);
    check_clocks(model.manifest(), state, offset, path);
    if (std::find(rings.capacities.begin(), rings.capacities.end(), capacity) != rings.capacities.end()) {
        if (capacity < rings.capacities.back() && position > capacity) fail(path, " is damaged: ", position, " frames are not kept in ", capacity, " slots");
        return;
    }
    // Smaller rings that are not full go on in the next larger ones.
    auto larger = std::upper_bound(rings.capacities.begin(), rings.capacities.end(), capacity);
    if (larger == rings.capacities.end() || position > capacity)
        refuse_capacity(model.manifest(), capacity, path);
    model.grow(state, *larger);
}

// Has `write` make a file under another name, which becomes `path` when all of it is on the disk.
template <class Write>
void put_in_place(const std::string& path, const Write& write) {
    // MLX adds its ending to a name without.
    std::string part = path + "." + std::to_string(getpid()) + ".part" + ending;
    errno = 0;
    int file = open(part.c_str(), O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0644);
    if (file < 0) fail(path, " cannot be written: ", std::strerror(errno));
    std::string wrong;
    try {
        write(part);
        if (fsync(file) || std::rename(part.c_str(), path.c_str())) wrong = std::strerror(errno);
    } catch (const std::exception& e) {
        wrong = errno ? std::strerror(errno) : e.what();
    }
    close(file);
    if (wrong.empty()) return;
    unlink(part.c_str());
    fail(path, " cannot be written: ", wrong);
}

}  // namespace

void write_conversation(const Model& model, const Arrays& state, const std::string* pending, const std::string& path) {
    if (!path.ends_with(ending)) fail(path, " should end in ", ending);
    std::error_code error;
    fs::path folder = fs::path(path).parent_path();
    if (!folder.empty() && !fs::is_directory(folder, error)) fail("the folder ", folder.string(), " does not exist; make it first");
    if (fs::is_directory(path, error)) fail(path, " is a folder; expected the name of a file");
    std::unordered_map<std::string, mx::array> arrays;
    for (const auto& [name, array] : state) arrays.insert({name.substr(state_prefix.size()), array});
    if (!pending) arrays.insert({text_name, mx::zeros({0, 4}, mx::uint8)});
    else {
        // How many bytes, and the bytes, three at most.
        std::array<uint8_t, 4> bytes{uint8_t(pending->size())};
        for (size_t i = 0; i < std::min<size_t>(3, pending->size()); ++i) bytes[1 + i] = uint8_t((*pending)[i]);
        arrays.insert({text_name, mx::array(bytes.data(), {1, 4}, mx::uint8)});
    }
    const auto& facts = model.manifest().conversation;
    if (fs::exists(path, error) && !fs::is_regular_file(path, error)) fail(path, " is no regular file; expected the name of one to save to");
    // A link stays one: what it leads to is replaced.
    fs::path target = fs::weakly_canonical(path, error);
    put_in_place(error ? path : target.string(), [&](const std::string& part) { mx::save_safetensors(part, arrays, {facts.begin(), facts.end()}); });
}

Conversation read_conversation(const Model& model, const Arrays& like, const std::string& path) {
    const Manifest& m = model.manifest();
    std::error_code error;
    if (!fs::exists(path, error)) fail(path, " does not exist");
    if (!fs::is_regular_file(path, error)) fail(path, " is no file; expected a saved conversation");
    auto metadata = read_tensor_header(path).metadata;
    auto format = m.conversation.find("format");
    if (format == m.conversation.end() || metadata["format"] != format->second) fail(path, " is not a saved conversation, or of another version");
    // Files of version 1.0.0 do not say which model they belong to.
    for (const auto& [key, value] : m.conversation)
        if (metadata.contains(key) && metadata[key] != value)
            fail(path, " was saved with another model than ", m.source, ", or with other weights of it");

    Conversation found;
    for (auto& [name, array] : load_arrays(path)) {
        if (name == text_name) {
            if (array.dtype() == mx::uint8 && array.shape() == mx::Shape{0, 4}) continue;
            if (array.dtype() != mx::uint8 || array.shape() != mx::Shape{1, 4}) fail(path, " is damaged: ", text_name, " is no text");
            mx::eval(array);
            auto bytes = values<uint8_t>(array);
            if (bytes[0] > 3) fail(path, " is damaged: ", text_name, " is no text");
            found.pending.assign(bytes.begin() + 1, bytes.begin() + 1 + bytes[0]);
            continue;
        }
        auto own = like.find(state_prefix + name);
        if (own == like.end()) fail(path, " was saved with another model or other options: ", name, " is not known here");
        mx::array form = array;
        check_form(m, own->first, own->second, form, path);
        mx::eval(form);
        check_numbers(m, own->first, form, path);
        found.state.insert_or_assign(own->first, form);
    }
    for (const auto& [name, _] : like)
        if (!found.state.contains(name)) fail(path, " was saved with another model or other options: it lacks ", name.substr(state_prefix.size()));
    fit_rings(model, found.state, path);
    for (auto& [_, array] : found.state) mx::eval(array);
    return found;
}

}  // namespace moshi
