//! What a day of a machine's timeline takes on the host: the program runs with a clock that goes 300 times as fast, so that a
//! day passes in five minutes, while the guest changes the same part of its RAM and disk between every two checkpoints.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::Bench;
use crate::checkpoint::{Ours, PATIENCE};
use crate::figures::{Figure, Report, Series};

/// How fast the clock goes.
const FASTER: u32 = 300;
const MINUTES: u32 = 10;
const POINTS: u32 = 24 * 60 / MINUTES;
/// What the guest changes between two checkpoints: RAM and disk, MiB.
const RAM: u64 = 48;
const DISK: u64 = 16;
/// The machine's memory, MiB.
const MEMORY: u32 = 256;

/// A library that is loaded before the C library, whose clock it puts in place of the real one.
const CLOCK: &str = r"
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, id, now);
    const char *start = getenv(BENCH_CLOCK_START);
    if (result == 0 && id == CLOCK_REALTIME && start) {
        long long from = atoll(start) * 1000000000LL;
        long long passed = now->tv_sec * 1000000000LL + now->tv_nsec - from;
        long long at = from + passed * FASTER;
        now->tv_sec = at / 1000000000LL;
        now->tv_nsec = at % 1000000000LL;
    }
    return result;
}
";
const START: &str = "BENCH_CLOCK_START";

/// See the module.
pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let folder = bench.scratch.path().join("clock");
    fs::create_dir_all(&folder).context("could not make a folder")?;
    let (source, clock) = (folder.join("clock.c"), folder.join("clock.so"));
    fs::write(&source, CLOCK).context("could not write a file")?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1"]).arg(format!("-DFASTER={FASTER}"));
    compiler.arg(format!("-DBENCH_CLOCK_START=\"{START}\"")).arg("-o").arg(&clock).arg(&source);
    ensure!(compiler.status().context("there is no C compiler")?.success(), "the clock does not compile");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let ours = Ours::new(bench)?.with_env("LD_PRELOAD", &clock).with_env(START, now.to_string());

    let blocks = DISK << 8;
    let words = format!("then=watch watchmib={RAM} watchblocks={blocks}");
    ours.create("day", MEMORY, &words, Some(&format!("{DISK}M")))?;
    ours.ok(&["start", "day", "--headless"])?;
    ours.wait_for("day", "holds")?;
    let machine = ours.folder("day");
    let before = on_host(&machine)?;
    // It is taken when it is due by the fast clock; the timeline's thread looks when it is told again how to keep it.
    let every = MINUTES.to_string();
    let (real, begun) = (Duration::from_secs(u64::from(60 * MINUTES)) / FASTER, Instant::now());
    for point in 1..=POINTS {
        ours.ok(&["timeline", "on", "day", "--every", &every, "--space", "100G"])?;
        thread::sleep((real * point).saturating_sub(begun.elapsed()));
    }
    let until = Instant::now() + PATIENCE;
    let kept = loop {
        let points: serde_json::Value =
            serde_json::from_str(&ours.ok(&["timeline", "list", "day", "--json"])?).context("no JSON")?;
        let count = points.as_array().map_or(0, Vec::len);
        // The last hour's, one for each hour before, and what the turn of an hour adds.
        if (24..=34).contains(&count) {
            break count as f64;
        }
        ensure!(Instant::now() < until, "{count} checkpoints were kept of {POINTS}");
        thread::sleep(Duration::from_secs(1));
    };
    ours.ok(&["pause", "day"])?;
    let space = on_host(&machine)?.saturating_sub(before) as f64 / 1_048_576.0;
    ours.ok(&["resume", "day"])?;
    ours.wait_for("day", "holds")?;
    ours.ok(&["stop", "day", "--force"])?;
    let series = |name: &str, value: f64| Series { name: name.into(), samples: vec![value] };
    let changed = (RAM + DISK) as f64;
    report.add(Figure {
        name: format!(
            "a day of timeline on the host: a checkpoint every {MINUTES} minutes, between which {RAM} MiB of RAM and {DISK} of the \
             disk change, {kept} kept"
        ),
        unit: "MiB",
        more_is_better: false,
        ours: series("Orangery", space),
        others: vec![
            series("the part that changes, once for each that is kept", changed * kept),
            series("the same for each that was taken", changed * f64::from(POINTS)),
        ],
    });
    Ok(())
}

/// What a folder takes, bytes.
fn on_host(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))? {
        let entry = entry.context("could not read a folder")?;
        // What is deleted meanwhile takes nothing.
        let Ok(about) = entry.metadata() else { continue };
        bytes += about.blocks() * 512;
        if about.is_dir() {
            bytes += on_host(&entry.path())?;
        }
    }
    Ok(bytes)
}
