use std::process::ExitCode;

fn main() -> ExitCode {
    namesrv::cli::main(std::env::args_os())
}
