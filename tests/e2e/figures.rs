//! What rolls and losses cost the applications: gathered by the scenarios, printed at the end, and with `E2E_WRITE_DOCS` written into
//! `docs/rolling-upgrade.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};

use crate::clients::Report;

const PAGE: &str = "docs/rolling-upgrade.md";
const BEGIN: &str = "<!-- measured: begin -->\n";
const END: &str = "<!-- measured: end -->";
const HEAD: &str = "| Mode | What happened | Acknowledged | Lost | Duplicates | Order kept | Failed sends | Longest gap in sends |\n|---|---|---|---|---|---|---|---|\n";

/// Rows by mode and what happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures(Arc<Mutex<BTreeMap<(String, String), Report>>>);

impl Figures {
    pub(crate) fn add(&self, mode: &str, what: &str, report: Report) {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rows.insert((mode.to_owned(), what.to_owned()), report);
    }

    fn rows(&self) -> Vec<String> {
        let rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rows.iter()
            .map(|((mode, what), report)| row(mode, what, report))
            .collect()
    }

    /// Prints the table, and writes it into the page when that is asked for.
    pub(crate) fn tell(&self, root: &Path, cluster: &str) -> Result<()> {
        let rows = self.rows();
        if rows.is_empty() {
            return Ok(());
        }
        println!("\n{HEAD}{}", rows.concat());
        if std::env::var_os("E2E_WRITE_DOCS").is_none() {
            return Ok(());
        }
        let path = root.join(PAGE);
        let text = fs::read_to_string(&path).context(PAGE)?;
        fs::write(&path, replaced(&text, &rows, cluster).context(PAGE)?).context(PAGE)
    }
}

fn row(mode: &str, what: &str, report: &Report) -> String {
    format!(
        "| {mode} | {what} | {} | {} | {} | {} | {} | {:.2} s |\n",
        report.acked,
        report.missing,
        report.duplicates,
        if report.disordered == 0 { "yes" } else { "no" },
        report.refused,
        report.longest_gap_ms as f64 / 1_000.0,
    )
}

/// The page with these rows in place of their older selves; rows of scenarios that did not run stay.
fn replaced(page: &str, rows: &[String], cluster: &str) -> Result<String> {
    let from = page.find(BEGIN).context("no mark for the table's begin")? + BEGIN.len();
    let to = page.find(END).context("no mark for the table's end")?;
    let key = |row: &str| row.split('|').take(3).map(str::trim).collect::<String>();
    let mut all: BTreeMap<String, &str> = page
        .get(from..to)
        .unwrap_or_default()
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| Mode "))
        .map(|line| (key(line), line))
        .collect();
    all.extend(rows.iter().map(|line| (key(line), line.trim_end())));
    let mut table = format!("Last run: {cluster}.\n\n{HEAD}");
    for line in all.values() {
        writeln!(table, "{line}")?;
    }
    Ok(format!(
        "{}{table}{}",
        page.get(..from).unwrap_or_default(),
        page.get(to..).unwrap_or_default()
    ))
}
