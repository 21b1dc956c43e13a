//! Our broker and the original in one replica group: either follows the other, and a running cluster moves from the original to
//! ours by the commands of `docs/migration.md`. Run by `tests/clients/run.sh replication`, which has fetched the original's jars:
//! `ORIGINAL_SERVERS` is a folder with `servers-4.9.7/lib` and `servers-5.3.3/lib`, and `java-4.9.8/lib` for mqadmin.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a panic is how a scenario fails; its lines are read by a script

mod migration;
mod original;
mod rig;

use std::path::PathBuf;
use std::sync::Arc;

use crate::rig::Scene;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    tokio::task::LocalSet::new().run_until(run()).await;
}

async fn run() {
    let Some(jars) = std::env::var_os("ORIGINAL_SERVERS").map(PathBuf::from) else {
        println!("ORIGINAL_SERVERS is not set: run tests/clients/run.sh replication");
        std::process::exit(2);
    };
    let only = std::env::args().nth(1).unwrap_or_default();
    let jars = Arc::new(jars);
    let mut scenarios = Vec::new();
    let mut number = 0;
    let mut scene = |name: &str| {
        number += 1;
        name.contains(&only)
            .then(|| Scene::new(name, number, &jars))
    };
    for version in ["4.9.7", "5.3.3"] {
        if let Some(scene) = scene(&format!("our slave follows a {version} master")) {
            scenarios.push((
                scene.name.clone(),
                tokio::task::spawn_local(original::ours_follows(scene, version)),
            ));
        }
        if let Some(scene) = scene(&format!("a {version} slave follows our master")) {
            scenarios.push((
                scene.name.clone(),
                tokio::task::spawn_local(original::ours_leads(scene, version)),
            ));
        }
    }
    if let Some(scene) = scene("a 4.9.7 cluster moves with no downtime, as documented") {
        scenarios.push((
            scene.name.clone(),
            tokio::task::spawn_local(migration::as_documented(scene)),
        ));
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, scenario) in scenarios {
        match scenario.await {
            Ok(said) => {
                passed += 1;
                println!("PASS {name}: {said}");
            }
            Err(_) => {
                failed += 1;
                println!("FAIL {name}");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    std::process::exit(i32::from(failed > 0));
}
