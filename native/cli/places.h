// Where results go, by the rules of the commands in Python: a folder has to be there, links are followed, and what is no regular file (a
// device, a named pipe) is written straight into.
#pragma once

#include <string>

struct Place {
    std::string path;
    bool is_file = true;  // to be made under another name and renamed
};

// Throws std::runtime_error for what cannot be written to.
Place place_for(const std::string& path);

// Whether two names mean one file, which need not be there.
bool same_file(const std::string& one, const std::string& other);
