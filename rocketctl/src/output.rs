//! How results are shown: tables for people, JSON and YAML for programs. Colours only on a terminal, and never with `NO_COLOR`.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// `println!` for results: whoever reads them may stop early, as `head` does, and that is no failure.
macro_rules! say {
    () => { $crate::output::write_out(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::output::write_out(format_args!("{}\n", format_args!($($arg)*))) };
}

/// `println!` of a process that lives on when nobody reads what it says.
macro_rules! tell {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arg)*);
    }};
}

pub(crate) fn write_out(text: fmt::Arguments<'_>) {
    if let Err(e) = std::io::stdout().write_fmt(text) {
        std::process::exit(i32::from(e.kind() != std::io::ErrorKind::BrokenPipe));
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

impl Format {
    /// The machine-readable forms; a table is the caller's.
    pub(crate) fn print(self, value: &impl Serialize) -> anyhow::Result<()> {
        match self {
            Format::Yaml => write_out(format_args!("{}", serde_saphyr::to_string(value)?)),
            Format::Json | Format::Table => say!("{}", serde_json::to_string_pretty(value)?),
        }
        Ok(())
    }

    /// Prints the value, or calls `table`.
    pub(crate) fn show(self, value: &impl Serialize, table: impl FnOnce()) -> anyhow::Result<()> {
        if self == Format::Table {
            table();
            return Ok(());
        }
        self.print(value)
    }
}

/// Left-justified columns, two blanks apart, each as wide as its widest cell; the last one is not padded.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(header: [&str; N]) -> Self {
        Self {
            rows: vec![header.iter().map(|c| (*c).to_owned()).collect()],
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|r| r.get(column))
                .map(|c| c.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    pub(crate) fn print(&self) {
        write_out(format_args!("{}", self.text()));
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Colour {
    Green = 32,
    Yellow = 33,
    Red = 31,
}

/// The text in a colour where standard output shows colours.
pub(crate) fn coloured(text: &str, colour: Colour) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
        || !std::io::stdout().is_terminal();
    if plain {
        text.to_owned()
    } else {
        format!("\x1b[{}m{text}\x1b[0m", colour as u8)
    }
}

/// `850 ms`, `12.3 s`, `5 min`, `3 h`, `2 d`: as exact as a reader needs.
pub(crate) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min", duration.as_secs() / 60),
        3600..86_400 => format!("{} h", duration.as_secs() / 3600),
        _ => format!("{} d", duration.as_secs() / 86_400),
    }
}

/// Local time of a timestamp in milliseconds, as the original's tools print it.
pub(crate) fn time(ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(ms) {
        Ok(at) if ms > 0 => at
            .to_zoned(jiff::tz::TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S,%3f")
            .to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_needed() {
        let mut table = Table::new(["NAME", "N"]);
        table.row(["a long one".to_owned(), "1".to_owned()]);
        table.row(["é".to_owned(), String::new()]);
        assert_eq!(table.text(), "NAME        N\na long one  1\né\n");
    }

    #[test]
    fn durations() {
        assert_eq!(human(Duration::from_millis(850)), "850 ms");
        assert_eq!(human(Duration::from_millis(12_340)), "12.3 s");
        assert_eq!(human(Duration::from_secs(7200)), "2 h");
    }

    #[test]
    fn times_have_milliseconds() {
        assert_eq!(time(0), "");
        assert!(time(1_700_000_000_123).ends_with(",123"));
    }
}
