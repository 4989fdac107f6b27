#pragma once

#include <cfenv>

namespace tam::cpu {

// Default floating-point environment (round to nearest, denormals kept, no traps) for a scope; the caller's returns with
// its end, however it ends.
class DefaultFpEnvironment {
  public:
    DefaultFpEnvironment() {
        std::fegetenv(&saved_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultFpEnvironment() { std::fesetenv(&saved_); }
    DefaultFpEnvironment(const DefaultFpEnvironment&) = delete;
    DefaultFpEnvironment& operator=(const DefaultFpEnvironment&) = delete;

  private:
    std::fenv_t saved_;
};

}  // namespace tam::cpu
