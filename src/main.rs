#![forbid(unsafe_code)]

// Every request is a stream of its own to Envoy's filter, with some forty small allocations, and musl's own allocator has
// one lock for all threads. With the C library of GNU, mimalloc would take less CPU than the system's, and nearly twice
// the memory (docs/scaling.md).
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    envoy_cimd::run(std::env::args_os())
}
