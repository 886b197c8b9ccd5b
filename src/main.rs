#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    envoy_cimd::run(std::env::args_os())
}
