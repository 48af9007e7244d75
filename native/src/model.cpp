#include "model.h"

#include <unistd.h>

#include <algorithm>

#include "error.h"
#include "mlx/compile.h"
#include "mlx/device.h"
#include "mlx/io.h"
#include "mlx/memory.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "mlx/version.h"
#include "safetensors.h"

namespace mx = mlx::core;

namespace moshi {

namespace {

// Weights read between two reports of progress.
constexpr size_t step_bytes = 64 << 20;

std::string device_name() { return mx::default_device() == mx::Device::gpu ? "gpu" : "cpu"; }

void check_machine(const Manifest& m) {
    if (m.mlx != mx::version())
        fail(m.folder, " was written by MLX ", m.mlx, ", this program runs ", mx::version(),
             ", which may read it wrongly; export the model anew with that version: python -m moshi_mlx.export");
    if (m.device != device_name())
        fail(m.folder, " was written for the ", m.device, ", MLX runs on the ", device_name(), " here; export the model on such a machine");
    auto physical = uint64_t(sysconf(_SC_PHYS_PAGES)) * uint64_t(sysconf(_SC_PAGESIZE));
    // What the files hold, whatever the manifest says of them.
    uint64_t held = m.files.at(m.weights).bytes;
    for (const StartInfo& start : m.starts) held += m.files.at(start.file).bytes;
    uint64_t needed = std::max(m.memory, held);
    if (needed > physical) fail(m.folder, " needs ", needed / 1'000'000, " MB of memory, this machine has ", physical / 1'000'000, " MB");
}

// MLX lists every input that it did not expect, thousands of them; the first line says what is wrong.
std::string first_line(const std::exception& e) {
    std::string text = e.what();
    return text.substr(0, std::min(text.find('\n'), size_t(200)));
}

// Inputs of the two ways to call a function: with and without an end mark.
std::string kind_of(const Arrays& inputs) {
    std::string names;
    for (const auto& [name, _] : inputs) names += name + ' ';
    return names;
}

}  // namespace

Arrays load_arrays(const std::string& path) {
    read_tensor_header(path);
    try {
        auto [arrays, _] = mx::load_safetensors(path);
        return {arrays.begin(), arrays.end()};
    } catch (const std::exception& e) {
        fail(path, " cannot be read: ", first_line(e));
    }
}

void evaluate(const Arrays& results, const Arrays& state) {
    std::vector<mx::array> all;
    for (const Arrays* arrays : {&results, &state})
        for (const auto& [_, array] : *arrays) all.push_back(array);
    mx::eval(std::move(all));
}

template <class T>
std::vector<T> values(const mx::array& array) {
    mx::array plain = array;
    if (!plain.flags().row_contiguous) {
        plain = mx::contiguous(plain);
        mx::eval(plain);
    }
    const T* data = plain.data<T>();
    return {data, data + plain.size()};
}

template std::vector<float> values<float>(const mx::array&);
template std::vector<int32_t> values<int32_t>(const mx::array&);
template std::vector<uint8_t> values<uint8_t>(const mx::array&);

Model::Model(Manifest manifest, const Progress& progress) : Model(std::move(manifest), progress, device_name() == "gpu") {}

Model::Model(Manifest manifest, const Progress& progress, bool compiled) : manifest_(std::move(manifest)), compiled_(compiled) {
    check_machine(manifest_);
    read_functions();
    read_starts();
    read_weights(progress);
    trace();
    // What loading took beside the weights.
    mx::clear_cache();
}

void Model::read_functions() {
    for (const auto& [name, info] : manifest_.functions) {
        check_sum(manifest_, info.file);
        try {
            functions_.emplace(name, Function{info, mx::import_function(manifest_.path(info.file)), {}});
        } catch (const std::exception& e) {
            fail(manifest_.path(info.file), " is no function that MLX ", mx::version(), " can read: ", first_line(e));
        }
    }
    bool codec = has("encode") && has("decode");
    bool talks = has("first") && (has("frame") || has("hear"));
    if (!codec && !talks) fail(manifest_.folder, " has neither the functions of a conversation nor those of a codec");
    if (talks && (!manifest_.sampling || !manifest_.rings)) fail(manifest_.path("manifest.json"), ": 'sampling' or 'rings' is missing");
}

void Model::read_starts() {
    for (const StartInfo& info : manifest_.starts) {
        check_sum(manifest_, info.file);
        Arrays start = load_arrays(manifest_.path(info.file));
        for (auto& [_, array] : start) mx::eval(array);
        check_start(start, manifest_.path(info.file));
        if (manifest_.rings && std::find(manifest_.rings->capacities.begin(), manifest_.rings->capacities.end(), info.capacity) ==
                                   manifest_.rings->capacities.end())
            fail(manifest_.path("manifest.json"), ": a start has rings of ", info.capacity, " slots, which is none of 'capacities'");
        starts_.push_back(std::move(start));
    }
}

void Model::check_start(const Arrays& start, const std::string& file) const {
    auto need = [&](const std::string& name, mx::Dtype type, const mx::Shape& shape) {
        auto found = start.find(state_prefix + name);
        if (found == start.end() || found->second.dtype() != type || found->second.shape() != shape) fail(file, " lacks ", name, " or has it in another form");
    };
    for (const auto& [name, _] : start)
        if (!name.starts_with(state_prefix)) fail(file, " holds ", name, ", which is no state");
    if (!manifest_.rings) return;
    need("lm.offset", mx::int32, {});
    need("lm.seed", mx::uint32, {1});
    need("lm.trunk.position", mx::int32, {});
    auto tokens = start.find(state_prefix + "lm.tokens");
    if (tokens == start.end() || tokens->second.dtype() != mx::int32 || tokens->second.ndim() != 3 || tokens->second.shape(0) != 1 ||
        size_t(tokens->second.shape(1)) != manifest_.delays.size() || tokens->second.shape(1) <= manifest_.codebooks || tokens->second.shape(2) <= manifest_.delay)
        fail(file, " lacks lm.tokens or has it in another form");
    for (const std::string& name : manifest_.rings->names) {
        auto ring = start.find(name);
        if (ring == start.end() || ring->second.ndim() <= size_t(manifest_.rings->axis)) fail(file, " lacks the ring ", name);
    }
}

void Model::read_weights(const Progress& progress) {
    std::string path = manifest_.path(manifest_.weights);
    Arrays weights = load_arrays(path);
    uint64_t total = 0, done = 0;
    for (const auto& [_, array] : weights) total += array.nbytes();
    std::vector<mx::array> batch;
    size_t waiting = 0;
    auto read = [&] {
        mx::eval(batch);
        done += waiting;
        waiting = 0;
        batch.clear();
        if (progress) progress(done, total);
    };
    for (const auto& [name, array] : weights) {
        fixed_.insert_or_assign(name, array);
        batch.push_back(array);
        waiting += array.nbytes();
        if (waiting >= step_bytes) read();
    }
    read();
}

void Model::trace() {
    std::vector<int64_t> capacities = manifest_.rings ? manifest_.rings->capacities : std::vector<int64_t>{0};
    Arrays sampling;
    if (manifest_.sampling)
        for (const char* ending : {"", "_text"}) {
            sampling.insert_or_assign(sampling_prefix + "temp" + ending, mx::array(0.0f));
            sampling.insert_or_assign(sampling_prefix + "top_k" + ending, mx::array(0));
        }
    for (auto& [name, function] : functions_)
        for (int64_t capacity : capacities) {
            bool fresh = std::any_of(manifest_.starts.begin(), manifest_.starts.end(), [&](const StartInfo& s) { return s.capacity == capacity; });
            if (name == "first" && !fresh) continue;
            std::vector<Arrays> kinds{sampling};
            if (name == "decode") kinds[0].insert_or_assign("codes", mx::zeros({1, manifest_.codebooks}, mx::int32));
            else if (name != "first") kinds[0].insert_or_assign("pcm", mx::zeros({1, manifest_.frame_size}));
            if (manifest_.translation && (name == "frame" || name == "hear")) {
                kinds.push_back(kinds[0]);
                kinds[1].insert_or_assign("ended", mx::array({true}));
            }
            for (const Arrays& inputs : kinds) {
                Arrays state = starts_[0];
                if (manifest_.rings) empty_rings(state, capacity);
                Arrays before = state;
                Arrays results = call(name, state, inputs);
                check_results(name, results, before, state);
                // A GPU compiles its kernels when they first run, which should not be in a talk.
                if (compiled_) evaluate(results, state);
            }
        }
}

void Model::check_results(const std::string& function, const Arrays& results, const Arrays& before, const Arrays& after) const {
    auto wrong = [&](const std::string& name) { fail(manifest_.path(manifest_.functions.at(function).file), " does not give the ", name, " that the manifest speaks of"); };
    const std::map<std::string, std::pair<mx::Shape, mx::Dtype>> expected{
        {"pcm", {{1, manifest_.frame_size}, mx::float32}},
        {"tokens", {{1, 1 + manifest_.codebooks}, mx::int32}},
        {"codes", {{1, manifest_.codebooks}, mx::int32}},
    };
    for (const auto& [name, array] : results) {
        auto found = expected.find(name);
        if (found != expected.end() && (array.shape() != found->second.first || array.dtype() != found->second.second)) wrong(name);
        if (name == "pauses" && (!manifest_.transcript || array.shape() != mx::Shape{1, manifest_.transcript->heads})) wrong(name);
    }
    auto need = [&](const char* name) {
        if (!results.contains(name)) wrong(name);
    };
    if (function == "frame" || function == "decode") need("pcm");
    if (function == "frame" || function == "hear") need("tokens");
    if (function == "encode") need("codes");
    for (auto old = before.begin(), now = after.begin(); old != before.end(); ++old, ++now)
        if (old->second.shape() != now->second.shape() || old->second.dtype() != now->second.dtype()) wrong("state " + old->first);
}

Arrays Model::call(const std::string& name, Arrays& state, const Arrays& inputs) {
    auto found = functions_.find(name);
    if (found == functions_.end()) fail(manifest_.folder, " has no function '", name, "'");
    Function& function = found->second;
    std::vector<mx::array> out;
    try {
        out = call_graph(function, state, inputs);
    } catch (const Error&) {
        throw;
    } catch (const std::exception& e) {
        fail(manifest_.path(function.info.file), " does not belong to the other files of its folder: ", first_line(e));
    }
    const auto& results = function.info.results;
    if (out.size() != results.size() + state.size())
        fail(manifest_.path(function.info.file), " gives ", out.size(), " arrays, expected ", results.size() + state.size());
    size_t i = 0;
    Arrays named;
    for (const std::string& result : results) named.insert_or_assign(result, out[i++]);
    for (auto& [_, array] : state) array = out[i++];
    return named;
}

std::vector<mx::array> Model::call_graph(Function& function, const Arrays& state, const Arrays& inputs) {
    if (compiled_) {
        auto [entry, fresh] = function.compiled.try_emplace(kind_of(inputs));
        if (fresh) entry->second = compile(function, state, inputs);
        std::vector<mx::array> given;
        for (const Arrays* arrays : {&state, &inputs})
            for (const auto& [_, array] : *arrays) given.push_back(array);
        return entry->second(given);
    }
    // The state must not stay in here: a ring that somebody holds is copied instead of written in place.
    for (const Arrays* arrays : {&state, &inputs})
        for (const auto& [name, array] : *arrays) fixed_.insert_or_assign(name, array);
    auto take_out = [&] {
        for (const Arrays* arrays : {&state, &inputs})
            for (const auto& [name, _] : *arrays) fixed_.erase(name);
    };
    try {
        auto out = function.imported(fixed_);
        take_out();
        return out;
    } catch (...) {
        take_out();
        throw;
    }
}

Model::Compiled Model::compile(Function& function, const Arrays& state, const Arrays& inputs) {
    std::vector<std::string> names;
    for (const Arrays* arrays : {&state, &inputs})
        for (const auto& [name, _] : *arrays) names.push_back(name);
    // Traced once for each size of the rings; the weights are then part of the graph and not looked up at every frame.
    return mx::compile([this, &function, names](const std::vector<mx::array>& given) {
        mx::Kwargs arrays = fixed_;
        for (size_t i = 0; i < names.size(); ++i) arrays.insert_or_assign(names[i], given[i]);
        return function.imported(arrays);
    });
}

Arrays Model::start(size_t which) const {
    Arrays state = starts_.at(which);
    if (manifest_.rings) grow(state, manifest_.starts[which].capacity);
    return state;
}

int64_t Model::capacity(const Arrays& state) const {
    return manifest_.rings ? state.at(manifest_.rings->names[0]).shape(manifest_.rings->axis) : 0;
}

void Model::empty_rings(Arrays& state, int64_t capacity) const {
    for (const std::string& name : manifest_.rings->names) {
        mx::array& ring = state.at(name);
        mx::Shape shape = ring.shape();
        shape[size_t(manifest_.rings->axis)] = int(capacity);
        ring = mx::zeros(shape, ring.dtype());
    }
}

void Model::grow(Arrays& state, int64_t capacity) const {
    for (const std::string& name : manifest_.rings->names) {
        mx::array& ring = state.at(name);
        int64_t more = capacity - ring.shape(manifest_.rings->axis);
        if (more < 0) fail("rings of ", ring.shape(manifest_.rings->axis), " slots cannot become smaller");
        if (more == 0) continue;
        std::vector<std::pair<int, int>> widths(ring.ndim(), {0, 0});
        widths[size_t(manifest_.rings->axis)] = {0, int(more)};
        ring = mx::pad(ring, widths);
    }
}

}  // namespace moshi
