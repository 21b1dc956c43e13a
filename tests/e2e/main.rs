//! The whole product on a real Kubernetes, as its users meet it: the chart, the examples, stock clients in pods, faults.
//!
//! `run.sh` makes the images, starts a cluster of its own (or takes the one in `E2E_KUBECONFIG`), loads the images and runs this. Each scenario has
//! namespaces of its own, which enforce the pod security standard "restricted". Arguments select scenarios by a part of their name.
//! Nothing sleeps for a guess: every wait is for a condition, with a limit, and says at the end what it saw last.

mod clients;
mod figures;
mod kubernetes;
mod replicated;
mod scenarios;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use futures::{FutureExt as _, StreamExt as _};

use kubernetes::World;
use scenarios::{SCENARIOS, Scenario};

/// Scenarios at a time; most of their time is waiting.
const AT_A_TIME: usize = 3;
/// No scenario may take longer, whatever its own waits add up to.
const SCENARIO_LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("no runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&filters)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

enum Outcome {
    Ok,
    Ignored,
    Failed,
}

async fn run(filters: &[String]) -> Result<bool> {
    let began = Instant::now();
    let chosen: Vec<&Scenario> = SCENARIOS
        .iter()
        .filter(|s| filters.is_empty() || filters.iter().any(|f| s.name.contains(f.as_str())))
        .collect();
    let filtered_out = SCENARIOS.len() - chosen.len();
    println!("\nrunning {} tests", chosen.len());
    let world = World::connect().await.context("the cluster")?;
    world
        .install_operator()
        .await
        .context("installing the operator with helm")?;

    // Those that take something away from the others run alone, at the end.
    let (alone, together): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|s| s.alone);
    let mut outcomes: Vec<Outcome> = futures::stream::iter(together)
        .map(|scenario| run_one(&world, scenario))
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await;
    for scenario in alone {
        outcomes.push(run_one(&world, scenario).await);
    }

    world
        .figures
        .tell(&world.root, &world.described())
        .context("the table of figures")?;
    let count = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|o| wanted(o)).count();
    let failed = count(|o| matches!(o, Outcome::Failed));
    println!(
        "\ntest result: {}. {} passed; {failed} failed; {} ignored; 0 measured; {filtered_out} filtered out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        count(|o| matches!(o, Outcome::Ok)),
        count(|o| matches!(o, Outcome::Ignored)),
        began.elapsed().as_secs_f64(),
    );
    Ok(failed == 0)
}

async fn run_one(world: &World, scenario: &Scenario) -> Outcome {
    if let Some(reason) = (scenario.unless)(world) {
        println!("test {} ... ignored, {reason}", scenario.name);
        return Outcome::Ignored;
    }
    let began = Instant::now();
    let result = tokio::time::timeout(
        SCENARIO_LIMIT,
        AssertUnwindSafe(play(world, scenario)).catch_unwind(),
    )
    .await;
    let result = match result {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(anyhow!(
            "panicked: {}",
            panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("?")
        )),
        Err(_) => Err(anyhow!("not done after {SCENARIO_LIMIT:?}")),
    };
    let seconds = began.elapsed().as_secs_f64();
    let outcome = match result {
        Ok(()) => {
            println!("test {} ... ok <{seconds:.1}s>", scenario.name);
            Outcome::Ok
        }
        Err(e) => {
            println!(
                "test {} ... FAILED <{seconds:.1}s>\n{e:#}\n{}",
                scenario.name,
                world.diagnosis(scenario.name).await
            );
            Outcome::Failed
        }
    };
    world.forget_namespaces(scenario.name).await;
    outcome
}

async fn play(world: &World, scenario: &Scenario) -> Result<()> {
    let space = world.namespace(scenario.name).await?;
    (scenario.play)(space).await
}
