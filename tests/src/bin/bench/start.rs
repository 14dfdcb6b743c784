//! How long a monitor takes until its guest runs.

use std::time::Duration;

use anyhow::Result;

use crate::figures::{Figure, Report, Series};
use crate::guest::{Guest, Monitor};
use crate::{Bench, first_run};

/// Runs of each side.
const ROUNDS: usize = 11;
/// Runs to the first line through a BIOS that a software KVM interprets: some fifteen seconds each.
const SLOW_ROUNDS: usize = 1;

/// See the module.
pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let all = [Monitor::Orangery, Monitor::Microvm, Monitor::Q35Qboot, Monitor::Q35];
    let rounds = |_| ROUNDS;
    report.add(figure("exec to the first KVM_RUN", &all, rounds, |monitor| first_run::measure(bench, monitor))?);
    let rounds = |monitor| if monitor == Monitor::Q35 { SLOW_ROUNDS } else { ROUNDS };
    report.add(figure("exec to the probe's first line", &all, rounds, |monitor| first_line(bench, monitor))?);
    Ok(())
}

/// From the start of the monitor to the arrival of the probe's first line in a pipe.
fn first_line(bench: &Bench, monitor: Monitor) -> Result<Duration> {
    let guest = Guest::start(monitor, monitor.command(bench, "then=idle"))?;
    let (when, _) = guest.wait_for("probe: hello")?;
    Ok(when - guest.begun)
}

/// Measures each monitor in turn, round by round; the first is ours.
fn figure(
    name: &str,
    monitors: &[Monitor],
    rounds: impl Fn(Monitor) -> usize,
    mut measure: impl FnMut(Monitor) -> Result<Duration>,
) -> Result<Figure> {
    let mut series: Vec<Series> = monitors.iter().map(|monitor| Series::new(monitor.name())).collect();
    for round in 0..ROUNDS {
        for (monitor, series) in monitors.iter().zip(&mut series).filter(|(monitor, _)| round < rounds(**monitor)) {
            series.samples.push(measure(*monitor)?.as_secs_f64() * 1000.0);
        }
    }
    let ours = series.remove(0);
    Ok(Figure { name: name.into(), unit: "ms", more_is_better: false, ours, others: series })
}
