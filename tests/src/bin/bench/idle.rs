//! What a monitor costs while its guest sleeps: memory beyond the guest's own, and CPU.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use orangery_tests::desktop::Desktop;

use crate::Bench;
use crate::figures::{Figure, Report, Series};
use crate::guest::{Guest, Monitor};

/// What a start leaves to do ends meanwhile.
const SETTLE: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;
const WINDOW: Duration = Duration::from_secs(5);

/// See the module. All of them idle at once, so that what else the computer does hits them alike.
pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let desktop = Desktop::start("bench", 1280, 960)?;
    let monitors = [Monitor::Orangery, Monitor::Window, Monitor::Microvm, Monitor::Q35Qboot];
    let mut guests = Vec::new();
    for monitor in monitors {
        let mut command = monitor.command(bench, "then=idle");
        command.env("DISPLAY", desktop.name()).env_remove("WAYLAND_DISPLAY").env_remove("WAYLAND_SOCKET");
        let guest = Guest::start(monitor, command)?;
        guest.wait_for("probe: done")?;
        guests.push(guest);
    }
    // The serial port is there before the first picture.
    desktop.window("Orangery")?;
    thread::sleep(SETTLE);
    let new = || monitors.map(|monitor| Series::new(monitor.name()));
    let (mut resident, mut written, mut cpu) = (new(), new(), new());
    for _ in 0..ROUNDS {
        let before = guests.iter().map(Guest::cpu_time).collect::<Result<Vec<_>>>()?;
        let begun = Instant::now();
        thread::sleep(WINDOW);
        for ((guest, before), series) in guests.iter().zip(before).zip(&mut cpu) {
            let spent = guest.cpu_time()?.checked_sub(before).context("a thread of a monitor ended")?;
            series.samples.push(spent.as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0);
        }
        for ((guest, resident), written) in guests.iter().zip(&mut resident).zip(&mut written) {
            let overhead = guest.overhead()?;
            resident.samples.push(overhead.resident as f64 / 1024.0);
            written.samples.push(overhead.written as f64 / 1024.0);
        }
    }
    desktop.screenshot("idle")?;
    for (name, unit, [headless, window, microvm, q35]) in [
        ("resident memory beyond the guest's", "MiB", resident),
        ("of it written by the monitor", "MiB", written),
        ("CPU of an idle guest", "% of a core", cpu),
    ] {
        let copy = |series: &Series| Series { name: series.name.clone(), samples: series.samples.clone() };
        let others = vec![copy(&microvm), copy(&q35)];
        report.add(figure(format!("{name}, headless"), unit, headless, others));
        report.add(figure(format!("{name}, with the window open"), unit, window, vec![microvm, q35]));
    }
    report.note("QEMU's idle machines have no graphics, no input and no window; Orangery's have all its devices.");
    Ok(())
}

fn figure(name: String, unit: &'static str, ours: Series, others: Vec<Series>) -> Figure {
    Figure { name, unit, more_is_better: false, ours, others }
}
