use std::process::ExitCode;

fn main() -> ExitCode {
    rocketctl::main(std::env::args_os().collect())
}
