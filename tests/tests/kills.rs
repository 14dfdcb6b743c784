//! A machine whose process is killed at random instants while it is saved, forked and tidied up, with a guest that notices: every
//! snapshot stays what it was, byte by byte, and the machine starts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use orangery_tests::crash::{Act, Plan, Stage, State, THOROUGH, look};
use orangery_tests::kvm::Kvm;
use orangery_tests::report;
use serde_json::Value;

/// How often the process is killed; a thousand times takes most of an hour.
const KILLS: &str = "ORANGERY_KILLS";
const FEW: u64 = 6;
/// How long anything may take before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(120);
/// Snapshots that are kept at a time.
const KEPT: usize = 4;

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verb {
    Take,
    Delete,
    Suspend,
    Fork,
}

struct Bench {
    stage: Stage,
    dice: Dice,
    /// How long each took the last time that it was not interrupted.
    took: BTreeMap<Verb, Duration>,
    /// What was done last.
    history: Vec<String>,
    /// How often it was killed before each was done, and after.
    killed: BTreeMap<Verb, (u64, u64)>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        for name in ["a", "b"] {
            let _ = self.stage.run(&["stop", name, "--force"]);
        }
    }
}

impl Bench {
    fn show(&self, name: &str) -> Value {
        serde_json::from_str(&self.stage.ok(&["show", name, "--json"]).unwrap()).unwrap()
    }

    fn snapshots(&self) -> Vec<String> {
        let listed = self.stage.ok(&["snapshot", "list", "a", "--json"]).unwrap();
        let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
        listed.iter().map(|snapshot| snapshot["name"].as_str().unwrap().to_string()).collect()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.stage.folder.join(name).join("logs/serial.log")
    }

    /// Waits until the guest has found all right once more since it was started.
    fn wait_for_round(&self, name: &str) {
        self.wait_for_rounds(name, 1);
    }

    /// The same for so many times.
    fn wait_for_rounds(&self, name: &str, times: usize) {
        let until = Instant::now() + PATIENCE;
        loop {
            let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
            // With all that the guest says of it.
            let failed = log.find("FAIL").is_some_and(|at| log[at..].contains('\n'));
            assert!(!failed, "{name}: {log}; {:#?}", self.history);
            if log.matches(" holds").count() >= times {
                return;
            }
            assert!(Instant::now() < until, "{name} does not go on: {}", self.show(name));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// If it runs, its guest goes on and finds nothing wrong. A write of the guest's for which there was no room is made again.
    fn runs_on(&self, name: &str) {
        let rounds = || std::fs::read_to_string(self.log(name)).unwrap_or_default().matches(" holds").count();
        let (first, until) = (rounds(), Instant::now() + PATIENCE);
        while rounds() <= first {
            match self.show(name)["state"].as_str() {
                Some("stopped" | "suspended") => return,
                // It may have gone on, or ended, meanwhile.
                Some("paused") => drop(self.stage.run(&["resume", name]).unwrap()),
                _ => {}
            }
            assert!(Instant::now() < until, "{name} does not go on: {}", self.show(name));
            std::thread::sleep(Duration::from_millis(20));
        }
        self.wait_for_round(name);
    }

    fn start(&self, name: &str) {
        self.stage.ok(&["start", name, "--headless"]).unwrap();
        self.wait_for_round(name);
    }

    /// Kills the process that runs a machine, if one does, and waits for its end.
    fn kill(&self, name: &str) {
        let until = Instant::now() + PATIENCE;
        let mut pid = self.show(name)["running"]["pid"].as_i64();
        loop {
            if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
                // SAFETY: kill touches no memory.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            let shown = self.show(name);
            if matches!(shown["state"].as_str(), Some("stopped" | "suspended")) {
                return;
            }
            // It may have been on its way up, and say now who it is.
            pid = shown["running"]["pid"].as_i64();
            assert!(Instant::now() < until, "{name} does not end: {shown}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Does something to the machine, which runs, and kills it meanwhile. Returns what may have changed.
    fn interrupt(&mut self, verb: Verb, number: u64) -> Option<String> {
        let names = self.snapshots();
        let (new, old) = (format!("s{number}"), names.get(self.dice.below(KEPT as u64) as usize).or(names.first()));
        let (args, touched) = match (verb, old) {
            (Verb::Delete, Some(old)) => (vec!["snapshot", "delete", "a", old], Some(old.clone())),
            (Verb::Suspend, _) => (vec!["suspend", "a"], None),
            (Verb::Fork, _) => (vec!["fork", "a", "b"], None),
            (Verb::Take | Verb::Delete, _) => (vec!["snapshot", "take", "a", &new], Some(new.clone())),
        };
        self.history.push(format!("{args:?}"));
        let pid = self.show("a")["running"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap();
        let longest =
            self.took.get(&verb).copied().unwrap_or(Duration::from_millis(100)).max(Duration::from_millis(10));
        let delay = Duration::from_micros(self.dice.below(longest.as_micros() as u64 * 11 / 10));
        let began = Instant::now();
        let mut command = self.stage.command(&args).unwrap();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut done = None;
        while began.elapsed() < delay {
            if done.is_none() && child.try_wait().unwrap().is_some() {
                done = Some(began.elapsed());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        // SAFETY: kill touches no memory. A process that has ended by itself was not waited for by its parent, init, long
        // enough ago for another to have its number.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        child.wait().unwrap();
        // As long as it took, or a little more than it was given.
        self.took.insert(verb, done.unwrap_or(longest.mul_f64(1.05)).min(Duration::from_secs(3)));
        self.history.push(format!("killed after {delay:?}, done {done:?}"));
        let killed = self.killed.entry(verb).or_default();
        match done {
            Some(_) => killed.1 += 1,
            None => killed.0 += 1,
        }
        self.kill("a");
        touched
    }

    /// What is there is whole, and every snapshot but that which was being changed is what it was.
    fn compare(&self, before: &State, touched: Option<&str>) -> State {
        let after = look(&self.stage.folder).unwrap();
        let about = |fact: &str, name: &str| fact.starts_with(&format!("a: snapshot {name:?}"));
        for (fact, value) in before.facts.iter().filter(|(fact, _)| fact.starts_with("a: snapshot ")) {
            if touched.is_some_and(|name| about(fact, name)) {
                assert!(after.facts.get(fact).is_none_or(|now| now == value), "{fact}: {after:?}");
            } else {
                assert_eq!(after.facts.get(fact), Some(value), "{fact}");
            }
        }
        after
    }
}

fn bench() -> Bench {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    eprintln!("seed {seed}");
    let stage = Stage::new().unwrap();
    let kernel = stage.folder.parent().unwrap().join("probe.elf");
    std::fs::write(&kernel, orangery_assets::PROBE_ELF).unwrap();
    let (kernel, words) = (kernel.to_str().unwrap(), "then=watch watchmib=1");
    let machine = ["create", "a", "--memory", "64", "--cpus", "1", "--new-disk", "1M"];
    stage.ok(&[&machine[..], &["--kernel", kernel, "--cmdline", words]].concat()).unwrap();
    let (took, killed) = (BTreeMap::new(), BTreeMap::new());
    Bench { stage, dice: Dice(seed), took, killed, history: Vec::new() }
}

#[test]
fn a_machine_that_is_killed_at_any_instant_keeps_its_snapshots_and_starts() {
    let test = "a_machine_that_is_killed_at_any_instant_keeps_its_snapshots_and_starts";
    if Kvm::detect() == Kvm::None {
        return report::skip(2, test, "there is no usable /dev/kvm");
    }
    let kills = std::env::var(KILLS).map_or(FEW, |text| text.parse().unwrap());
    let mut bench = bench();
    let mut before = look(&bench.stage.folder).unwrap();
    bench.start("a");
    for number in 0..kills {
        let verb = match (bench.snapshots().len(), number % 4) {
            (KEPT.., _) | (1.., 1) => Verb::Delete,
            (_, 2) => Verb::Suspend,
            (_, 3) => Verb::Fork,
            _ => Verb::Take,
        };
        let touched = bench.interrupt(verb, number);
        if bench.stage.folder.join("b").exists() {
            // Whether it runs already, or was made only: it can be used, and be thrown away.
            bench.kill("b");
            let log = std::fs::read_to_string(bench.log("b")).unwrap_or_default();
            assert!(!log.contains("FAIL"), "b: {log}");
            bench.start("b");
            bench.kill("b");
            look(&bench.stage.folder).unwrap();
            bench.stage.ok(&["delete", "b"]).unwrap();
            bench.stage.ok(&["trash", "--empty"]).unwrap();
        }
        before = bench.compare(&before, touched.as_deref());
        let all = bench.snapshots();
        if number % 5 == 4
            && let Some(name) = all.get(bench.dice.below(KEPT as u64) as usize)
        {
            // The guest sees that its memory and its disk are of one moment.
            bench.history.push(format!("back to {name}"));
            bench.stage.ok(&["snapshot", "restore", "a", name]).unwrap();
        }
        let power = bench.show("a")["state"].clone();
        bench.history.push(format!("start of what is {power}"));
        bench.start("a");
        let old = bench.history.len().saturating_sub(40);
        bench.history.drain(..old);
        if number % 50 == 49 {
            eprintln!("{} kills, all well: {:?}", number + 1, bench.killed);
        }
    }
    let killed: u64 = bench.killed.values().map(|(before, after)| before + after).sum();
    assert_eq!(killed, kills);
    eprintln!("killed (before the end of it, after): {:?}", bench.killed);
}

/// What a process that runs a machine does first of what is asked of it.
const FIRST: &[&str] = &["orangery-part", "/checkpoints", ".machine.toml"];

/// Has `a` run in `bench` under a tracer, does `verb` to it, and ends it. Returns how many calls there were, what the verb said,
/// and whether the call came that was asked for.
fn traced(bench: &Bench, verb: &[&str], at: Option<(usize, Act)>) -> (usize, std::process::Output, bool) {
    // What an earlier process said.
    let _ = std::fs::remove_file(bench.log("a"));
    std::thread::scope(|scope| {
        let plan = Plan { at, uring: false, from: FIRST };
        let run = scope.spawn(move || bench.stage.traced(&["run", "a", "--headless"], plan).unwrap());
        bench.wait_for_round("a");
        let output = bench.stage.run(verb).unwrap();
        if matches!(at, Some((_, Act::Fail(_)))) {
            bench.runs_on("a");
        }
        bench.kill("a");
        let outcome = run.join().unwrap();
        (outcome.calls.len(), output, outcome.reached)
    })
}

#[test]
fn a_running_machine_is_interrupted_at_any_call_and_loses_nothing() {
    let test = "a_running_machine_is_interrupted_at_any_call_and_loses_nothing";
    if Kvm::detect() == Kvm::None {
        return report::skip(2, test, "there is no usable /dev/kvm");
    }
    let first = bench();
    for name in ["s1", "s2"] {
        first.start("a");
        first.stage.ok(&["snapshot", "take", "a", name]).unwrap();
        first.kill("a");
    }
    let before = look(&first.stage.folder).unwrap();
    let thorough = std::env::var(THOROUGH).is_ok();
    let mut dice = Dice(first.dice.0);
    let verbs: [(&[&str], Option<&str>); 3] = [
        (&["suspend", "a"], None),
        (&["snapshot", "take", "a", "s3"], None),
        (&["snapshot", "delete", "a", "s1"], Some("s1")),
    ];
    for (verb, touched) in verbs {
        let again = || Bench {
            stage: first.stage.copy().unwrap(),
            dice: Dice(1),
            took: BTreeMap::new(),
            killed: BTreeMap::new(),
            history: Vec::new(),
        };
        let (calls, output, _) = traced(&again(), verb, None);
        assert!(output.status.success() && calls > 5, "{verb:?}: {calls} calls, {output:?}");
        let mut done = 0;
        // An I/O error could be the guest's, which would tell of it.
        for act in [Act::Kill, Act::Fail(libc::ENOSPC)] {
            let one = dice.below(calls as u64) as usize;
            let few = if act == Act::Kill || touched.is_some() { one..one + 1 } else { 0..0 };
            for at in if thorough { 0..calls } else { few } {
                let mut bench = again();
                bench.history.push(format!("{verb:?}, {act:?} before call {at} of {calls}"));
                let (_, output, reached) = traced(&bench, verb, Some((at, act)));
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                bench.history.push(said.clone());
                assert!(output.status.success() || said.len() > 20, "{:?}", bench.history);
                assert!(!said.contains("panicked"), "{:?}", bench.history);
                if thorough {
                    eprintln!("{:?}", bench.history);
                }
                bench.compare(&before, touched);
                bench.start("a");
                bench.kill("a");
                done += usize::from(reached);
            }
        }
        eprintln!("{verb:?}: {calls} calls; interrupted {done} times");
    }
}
