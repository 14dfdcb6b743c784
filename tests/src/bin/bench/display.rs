//! Whole pictures of 1920×1080 through virtio-gpu: how many, how many of them reach the window, and what they cost.

use std::collections::HashSet;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use orangery_tests::desktop::Desktop;

use crate::Bench;
use crate::figures::{Figure, Report, Series};
use crate::guest::{Guest, Monitor};

const ROUNDS: usize = 3;
const WORDS: &str = "bench=gpu-1080p then=idle";
/// The same, once Escape is released: the window must be there first.
const WORDS_IN_WINDOW: &str = "test=input-echo inputecho bench=gpu-1080p then=idle";
/// The screen for the window: the whole picture fits into it at its own size.
const SCREEN: (usize, usize) = (2048, 1280);
/// Bytes of a picture.
const PICTURE: usize = 1920 * 1080 * 4;
/// How often the screen is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// What one guest with a window did.
struct Shown {
    updates: f64,
    pictures: f64,
    cpu: f64,
}

/// See the module.
pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut headless = Series::new("Orangery");
    let mut peer = Series::new("QEMU q35, virtio-gpu");
    let mut limit = Series::new("one copy of the picture by one core");
    let mut window = Series::new("Orangery with window");
    let mut pictures = Series::new("Orangery with window");
    let mut cpu = Series::new("Orangery with window");
    for _ in 0..ROUNDS {
        headless.samples.push(updates(&Guest::start(Monitor::Orangery, Monitor::Orangery.command(bench, WORDS))?)?);
        let mut command = Monitor::Q35Qboot.command(bench, WORDS);
        command.args(["-device", "virtio-gpu-pci"]);
        peer.samples.push(updates(&Guest::start(Monitor::Q35Qboot, command)?)?);
        limit.samples.push(copies());
        let shown = shown(bench)?;
        window.samples.push(shown.updates);
        pictures.samples.push(shown.pictures);
        cpu.samples.push(shown.cpu);
    }
    let copy = |series: &Series| Series { name: series.name.clone(), samples: series.samples.clone() };
    let figure = |name: &str, unit, more_is_better, ours, others| Figure {
        name: name.into(),
        unit,
        more_is_better,
        ours,
        others,
    };
    let all = vec![copy(&window), peer, limit];
    report.add(figure("1080p updates by the guest, headless", "updates/s", true, copy(&headless), all));
    let updates = copy(&window);
    report.add(figure("1080p updates by the guest, with the window open", "updates/s", true, window, vec![headless]));
    report.add(figure("1080p pictures that reach the screen", "pictures/s", true, pictures, vec![updates]));
    report.add(figure("CPU of the monitor meanwhile, guest included", "cores", false, cpu, Vec::new()));
    report
        .note("Where the CPU draws the window, as under Xvfb, Orangery draws it at most 30 times a second by intent.");
    Ok(())
}

fn updates(guest: &Guest) -> Result<f64> {
    guest.benches()?.get("gpu-1080p").copied().context("the probe did not measure its display")
}

/// How often a second a picture can be copied in memory.
fn copies() -> f64 {
    let (source, mut target) = (vec![0x5au8; PICTURE], vec![0u8; PICTURE]);
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < Duration::from_millis(500) {
        target.copy_from_slice(black_box(&source));
        black_box(&mut target);
        count += 1;
    }
    f64::from(count) / begun.elapsed().as_secs_f64()
}

/// One guest with a window on a desktop of its own, large enough for the whole picture.
fn shown(bench: &Bench) -> Result<Shown> {
    let desktop = Desktop::start("bench", SCREEN.0 as u32, SCREEN.1 as u32)?;
    let mut command = Monitor::Window.command(bench, WORDS_IN_WINDOW);
    command.env("DISPLAY", desktop.name()).env_remove("WAYLAND_DISPLAY").env_remove("WAYLAND_SOCKET");
    let guest = Guest::start(Monitor::Window, command)?;
    guest.wait_for("probe: input echo ready")?;
    let window = desktop.window("Orangery")?;
    window.resize(SCREEN.0 - 40, SCREEN.1 - 60)?;
    window.focus()?;
    window.keys(&["Escape"])?;
    guest.wait_for("test input-echo: ok")?;
    let (begun, before) = (Instant::now(), guest.cpu_time()?);
    let ended = Arc::new(AtomicBool::new(false));
    let watcher = thread::spawn({
        let (ended, screen) = (ended.clone(), File::open(desktop.screen()).context("could not open Xvfb's screen")?);
        move || watch(&screen, &ended)
    });
    let updates = updates(&guest);
    let (passed, spent) = (begun.elapsed(), guest.cpu_time()?.saturating_sub(before));
    ended.store(true, Ordering::Relaxed);
    let pictures = watcher.join().map_err(|_| anyhow!("the thread that watches the screen panicked"))??;
    Ok(Shown { updates: updates?, pictures, cpu: spent.as_secs_f64() / passed.as_secs_f64() })
}

/// Counts the different pictures on a screen, as Xvfb keeps it in a file, each second that they change: the probe fills
/// eight lines of each picture with a colour of its own, further down each time, so one column tells them apart.
fn watch(screen: &File, ended: &AtomicBool) -> Result<f64> {
    const WIDTH: usize = SCREEN.0;
    const HEIGHT: usize = SCREEN.1;
    let size = screen.metadata().context("could not look at Xvfb's screen")?.len();
    // The pixels are the end of the file.
    let start = size.checked_sub((WIDTH * HEIGHT * 4) as u64).context("Xvfb's screen is too small")?;
    let mut seen = HashSet::new();
    let (mut first, mut last, mut previous) = (None, None, Vec::new());
    while !ended.load(Ordering::Relaxed) {
        let mut column = Vec::with_capacity(HEIGHT / 4);
        for line in (0..HEIGHT).step_by(4) {
            let mut pixel = [0; 4];
            let offset = start + ((line * WIDTH + WIDTH / 2) * 4) as u64;
            screen.read_exact_at(&mut pixel, offset).context("could not read Xvfb's screen")?;
            column.push(u32::from_le_bytes(pixel));
        }
        // What is the same twice was not looked at while it was drawn.
        if column == previous && seen.insert(column.clone()) {
            let now = Instant::now();
            first.get_or_insert(now);
            last = Some(now);
        }
        previous = column;
        thread::sleep(LOOK);
    }
    let (Some(first), Some(last)) = (first, last) else { return Ok(0.0) };
    Ok((seen.len() - 1) as f64 / (last - first).as_secs_f64().max(f64::EPSILON))
}
