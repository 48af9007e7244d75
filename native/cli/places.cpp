#include "places.h"

#include <filesystem>
#include <stdexcept>

namespace fs = std::filesystem;

Place place_for(const std::string& path) {
    std::error_code error;
    fs::file_status found = fs::status(path, error);
    if (fs::is_directory(found)) throw std::runtime_error(path + " is a folder; expected the name of a file to write");
    if (fs::exists(found) && !fs::is_regular_file(found)) return {path, false};
    fs::path folder = fs::absolute(path, error).parent_path();
    if (!fs::is_directory(folder, error)) throw std::runtime_error("the folder " + folder.string() + " does not exist; make it first");
    fs::path whole = fs::weakly_canonical(path, error);
    return {error ? path : whole.string(), true};
}

bool same_file(const std::string& one, const std::string& other) {
    std::error_code error;
    if (fs::exists(one, error) && !fs::is_regular_file(one, error)) return false;
    return fs::weakly_canonical(one, error) == fs::weakly_canonical(other, error);
}
