//! Prints the definitions that `crds/` holds: `cargo run -p operator-core --bin crdgen > crds/rocketclusters.yaml`.

fn main() -> std::process::ExitCode {
    match operator_core::api::crds_yaml() {
        Ok(text) => {
            print!("{text}");
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("crdgen: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
