#![forbid(unsafe_code)]

// Every request is a stream of its own to Envoy's filter, with some forty small allocations. After many tokens have come and
// gone, the GNU C library's allocator takes longer for each of them; and musl's has one lock for all threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    envoy_cimd::run(std::env::args_os())
}
