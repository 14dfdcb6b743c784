//! What was measured, as a table for people and as JSON for scripts.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use orangery_tests::kvm::Kvm;
use serde_json::{Value, json};

/// Values of one side.
pub struct Series {
    /// Whose.
    pub name: String,
    /// In the order they were measured.
    pub samples: Vec<f64>,
}

impl Series {
    /// An empty series.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), samples: Vec::new() }
    }

    /// The middle value; none of an empty series.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len().checked_sub(1)? / 2;
        Some(if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle] + sorted[middle + 1]) / 2.0 })
    }

    fn range(&self) -> String {
        match self.samples.as_slice() {
            [] => String::from("–"),
            [only] => number(*only),
            samples => {
                let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
                let most = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let median = self.median().unwrap_or(f64::NAN);
                format!("{} ({}–{}, n={})", number(median), number(least), number(most), samples.len())
            }
        }
    }
}

/// One quantity, measured on both sides.
pub struct Figure {
    /// What is measured.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// Whether more is better.
    pub more_is_better: bool,
    /// Orangery's values.
    pub ours: Series,
    /// Those it is compared with: other monitors, or a limit.
    pub others: Vec<Series>,
}

/// All figures of a run.
pub struct Report {
    host: Vec<(&'static str, String)>,
    figures: Vec<Figure>,
    notes: Vec<String>,
}

impl Report {
    /// An empty report that says where it was made, and of which program.
    pub fn new(orangery: &Path) -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("could not read /proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let host = vec![
            ("processor", format!("{count} × {}", model.trim_start_matches([' ', '\t', ':']))),
            ("kernel", read("/proc/sys/kernel/osrelease")),
            ("KVM", format!("{:?}", Kvm::detect()).to_lowercase()),
            ("load when it began", read("/proc/loadavg")),
            ("orangery", first_line(orangery)),
            ("build", if cfg!(debug_assertions) { "dev" } else { "release" }.to_owned()),
            ("peer", first_line(Path::new("qemu-system-x86_64"))),
        ];
        Ok(Self { host, figures: Vec::new(), notes: Vec::new() })
    }

    /// Adds a figure.
    pub fn add(&mut self, figure: Figure) {
        eprintln!("{}: {} {}", figure.name, figure.ours.range(), figure.unit);
        for other in &figure.others {
            eprintln!("    {}: {}", other.name, other.range());
        }
        self.figures.push(figure);
    }

    /// Adds a sentence.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// For people.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# Benchmarks\n\n");
        for (name, value) in &self.host {
            text += &format!("- {name}: {value}\n");
        }
        text += "\nA ratio below 1 is better where less is better (↓), above 1 where more is (↑). ";
        text += "Values are medians (least–most, number of runs).\n\n";
        text += "| figure | unit | Orangery | beside | its value | ratio |\n|---|---|---|---|---|---|\n";
        for figure in &self.figures {
            let arrow = if figure.more_is_better { "↑" } else { "↓" };
            let mut first = [format!("{} {arrow}", figure.name), figure.unit.to_owned(), figure.ours.range()];
            if figure.others.is_empty() {
                text += &format!("| {} | | | |\n", first.join(" | "));
            }
            for other in &figure.others {
                let ratio = ratio(figure, other).map_or(String::from("–"), |ratio| format!("{ratio:.2}"));
                text += &format!("| {} | {} | {} | {ratio} |\n", first.join(" | "), other.name, other.range());
                first = Default::default();
            }
        }
        text.push('\n');
        for note in &self.notes {
            text += &format!("- {note}\n");
        }
        text
    }

    /// For scripts: everything, each sample included.
    pub fn json(&self) -> Value {
        let series =
            |series: &Series| json!({ "name": series.name, "median": series.median(), "samples": series.samples });
        let figure = |figure: &Figure| {
            let others = figure.others.iter().map(|other| {
                let mut value = series(other);
                value["ratio"] = json!(ratio(figure, other));
                value
            });
            json!({
                "name": figure.name,
                "unit": figure.unit,
                "more_is_better": figure.more_is_better,
                "orangery": series(&figure.ours),
                "others": others.collect::<Vec<_>>(),
            })
        };
        let host: serde_json::Map<String, Value> =
            self.host.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({
            "host": host,
            "figures": self.figures.iter().map(figure).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }
}

fn ratio(figure: &Figure, other: &Series) -> Option<f64> {
    let other = other.median().filter(|value| *value != 0.0)?;
    Some(figure.ours.median()? / other)
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn first_line(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("not found").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(samples: &[f64]) -> Series {
        Series { name: String::new(), samples: samples.to_vec() }
    }

    #[test]
    fn a_median_is_the_middle_whatever_the_order() {
        assert_eq!(series(&[9.0, 1.0, 5.0]).median(), Some(5.0));
        assert_eq!(series(&[4.0, 1.0, 2.0, 9.0]).median(), Some(3.0));
        assert_eq!(series(&[]).median(), None);
    }

    #[test]
    fn a_peer_without_values_has_no_ratio() {
        let figure =
            Figure { name: String::new(), unit: "ms", more_is_better: false, ours: series(&[2.0]), others: Vec::new() };
        assert_eq!(ratio(&figure, &series(&[8.0])), Some(0.25));
        assert_eq!(ratio(&figure, &series(&[])), None);
        assert_eq!(ratio(&figure, &series(&[0.0])), None);
    }
}
