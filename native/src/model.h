// The functions and weights of a folder, in MLX.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "manifest.h"
#include "mlx/array.h"
#include "mlx/export.h"

namespace moshi {

// By name, in the order of the names.
using Arrays = std::map<std::string, mlx::core::array>;

inline const std::string state_prefix = "s.", sampling_prefix = "sampling.";

// Lives on the worker's thread.
class Model {
   public:
    using Progress = std::function<void(uint64_t done, uint64_t total)>;

    // `compiled`: replay each function as one compiled graph. For a GPU; a CPU gains nothing and waits for a compiler.
    Model(Manifest manifest, const Progress& progress);
    Model(Manifest manifest, const Progress& progress, bool compiled);
    Model(const Model&) = delete;

    const Manifest& manifest() const { return manifest_; }
    bool has(const std::string& function) const { return functions_.contains(function); }

    // Calls a function; nothing is evaluated. `state` becomes the new state. Keys and values are written in place unless somebody else holds
    // the old state when the results are evaluated.
    Arrays call(const std::string& function, Arrays& state, const Arrays& inputs);

    // A fresh state of one of the manifest's starts.
    Arrays start(size_t which) const;
    // Slots of the rings of a state; 0 for a state without rings.
    int64_t capacity(const Arrays& state) const;
    // Gives the rings of a state `capacity` slots, the new ones empty.
    void grow(Arrays& state, int64_t capacity) const;

   private:
    struct Function {
        FunctionInfo info;
        mlx::core::ImportedFunction imported;
        // One for every set of inputs that the function is called with.
        std::map<std::string, std::function<std::vector<mlx::core::array>(const std::vector<mlx::core::array>&)>> compiled;
    };
    using Compiled = decltype(Function::compiled)::mapped_type;

    void read_weights(const Progress& progress);
    void read_starts();
    void read_functions();
    void trace();
    void empty_rings(Arrays& state, int64_t capacity) const;
    void check_start(const Arrays& start, const std::string& file) const;
    void check_results(const std::string& function, const Arrays& results, const Arrays& before, const Arrays& after) const;
    std::vector<mlx::core::array> call_graph(Function& function, const Arrays& state, const Arrays& inputs);
    Compiled compile(Function& function, const Arrays& state, const Arrays& inputs);

    Manifest manifest_;
    bool compiled_;
    mlx::core::Kwargs fixed_;
    std::vector<Arrays> starts_;
    std::map<std::string, Function> functions_;
};

// Arrays of a safetensors file, checked before MLX reads it; not yet evaluated.
Arrays load_arrays(const std::string& path);

// Both at once.
void evaluate(const Arrays& results, const Arrays& state);

// Values of an evaluated array.
template <class T>
std::vector<T> values(const mlx::core::array& array);

}  // namespace moshi
