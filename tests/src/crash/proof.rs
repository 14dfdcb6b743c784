//! Proves of an operation that nothing is lost whatever interrupts it: it is done again and again on a fresh copy of what there
//! was, each time interrupted before the next of its calls.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use super::order::violations;
use super::{Act, Outcome, Plan, State, look, run};
use crate::kvm::Kvm;
use crate::orangery;

/// With this variable set to 1 every call is interrupted in every way, not a few; to another number, every so many-th.
pub const THOROUGH: &str = "ORANGERY_THOROUGH";
/// How many calls are interrupted of each operation otherwise: by a kill, and in each other way.
const SAMPLES: (usize, usize) = (3, 2);
/// How many ways there are.
const WAYS: usize = 5;

/// A folder with machines and images, and a place for what is not looked at.
pub struct Stage {
    dir: Option<tempfile::TempDir>,
    /// The library, and images beside the machines.
    pub folder: PathBuf,
    run: PathBuf,
    scratch: PathBuf,
}

impl Stage {
    /// An empty one.
    ///
    /// # Errors
    /// The host refuses.
    pub fn new() -> Result<Stage> {
        let dir = tempfile::tempdir()?;
        // As the kernel names it.
        let root = dir.path().canonicalize()?;
        let [folder, run, scratch] = ["machines", "run", "scratch"].map(|name| root.join(name));
        for path in [&folder, &run, &scratch] {
            fs::create_dir(path)?;
        }
        Ok(Stage { dir: Some(dir), folder, run, scratch })
    }

    /// Another with the same in it.
    ///
    /// # Errors
    /// The host refuses.
    pub fn copy(&self) -> Result<Stage> {
        let copy = Stage::new()?;
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            // Zeroes in an image stay data; memory has holes as large as all of it.
            let sparse = if entry.path().is_dir() { "--sparse=always" } else { "--sparse=never" };
            let done = Command::new("cp").args(["-a", sparse]).arg(entry.path()).arg(&copy.folder).output()?;
            ensure!(done.status.success(), "could not copy {}", self.folder.display());
        }
        Ok(copy)
    }

    /// `orangery` with these arguments, in the folder.
    ///
    /// # Errors
    /// The program was not built.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(orangery()?);
        command.args(args).current_dir(&self.folder).env("ORANGERY_LIBRARY", &self.folder);
        command.env("XDG_RUNTIME_DIR", &self.run).env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Runs it.
    ///
    /// # Errors
    /// As above.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        Ok(self.command(args)?.output()?)
    }

    /// Runs it, and it succeeds.
    ///
    /// # Errors
    /// It does not.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        ensure!(output.status.success(), "{args:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs it, interrupted as planned.
    ///
    /// # Errors
    /// It can't be followed.
    pub fn traced(&self, args: &[&str], plan: Plan) -> Result<Outcome> {
        run(self.command(args)?, &self.folder, &self.scratch, plan)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Of a test that failed it stays, to be looked at.
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("what was left is in {}", dir.keep().display());
        }
    }
}

/// What is to be proven of an operation.
#[derive(Default)]
pub struct Operation<'a> {
    /// The command line.
    pub verb: &'a [&'a str],
    /// The machine that is started afterwards, if the operation is about one.
    pub machine: Option<&'a str>,
    /// What has all done that may be left to do.
    pub settle: &'a [&'a [&'a str]],
    /// Before anything else is changed something new is there, which may stay where it goes no further.
    pub adds: bool,
    /// How many images more may be left for good where it was interrupted: empty ones, on images that others have too.
    pub spare: usize,
    /// What is not done to its calls.
    pub without: &'a [Act],
}

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    /// Calls of the operation that store something.
    pub calls: usize,
    /// How often the program was killed.
    pub kills: usize,
    /// How often it was killed in the middle of a write.
    pub torn: usize,
    /// How often a call failed.
    pub failures: usize,
    /// How often there was space that was counted and not used, for a while.
    pub leaks: usize,
}

struct Proof<'a> {
    operation: &'a Operation<'a>,
    before: Stage,
    old: State,
    new: State,
    /// What there is when nothing is left to do.
    settled: State,
    kvm: bool,
    report: Report,
}

/// What [`THOROUGH`] says.
pub fn stride() -> Option<usize> {
    std::env::var(THOROUGH).ok().map(|text| text.parse().unwrap_or(1).max(1))
}

/// Proves it, on copies of `before`.
///
/// # Errors
/// It is not so.
pub fn prove(before: Stage, operation: &Operation<'_>) -> Result<Report> {
    let stride = stride();
    let old = look(&before.folder).context("before")?;
    let kvm = Kvm::detect() != Kvm::None;
    let mut proof = Proof {
        operation,
        before,
        old,
        new: State::default(),
        settled: State::default(),
        kvm,
        report: Report::default(),
    };
    let mut wrong = Vec::new();
    for uring in if stride.is_some() { &[false, true][..] } else { &[false][..] } {
        let whole = proof.before.copy()?;
        let outcome = whole.traced(operation.verb, Plan { at: None, uring: *uring, from: &[] })?;
        ensure!(outcome.code == Some(0), "undisturbed: {outcome:?}");
        proof.new = look(&whole.folder).context("after")?;
        ensure!(proof.new.leaks.is_empty() && proof.new.junk.is_empty(), "undisturbed, it leaves {:?}", proof.new);
        let loses = if *uring { Vec::new() } else { violations(&outcome.calls) };
        ensure!(loses.is_empty(), "{:?}: a power cut may take something: {}", operation.verb, loses.join("; "));
        proof.settled = proof.settle(&whole).context("undisturbed")?;
        let calls = outcome.calls.len();
        ensure!(calls > 0, "nothing was stored");
        proof.report.calls = proof.report.calls.max(calls);
        let every = |what: usize| -> BTreeSet<usize> {
            // Spread evenly, and not the same for all that can happen.
            let samples = if what == 0 { SAMPLES.0 } else { SAMPLES.1 }.min(calls);
            match stride {
                Some(stride) => (what % stride..calls).step_by(stride).collect(),
                None => (0..samples).map(|i| (i * WAYS + what + 1) * (calls - 1) / (samples * WAYS)).collect(),
            }
        };
        for (what, act) in
            [Act::Kill, Act::Tear, Act::Fail(libc::ENOSPC), Act::Fail(libc::EIO), Act::Full].into_iter().enumerate()
        {
            // What the kernel is told to do by io_uring is not looked into.
            if *uring && act != Act::Kill || operation.without.contains(&act) {
                continue;
            }
            for at in every(what) {
                let call = &outcome.calls[at.min(calls - 1)];
                if act == Act::Tear && !call.name.contains("write") || act == Act::Full && !call.grows {
                    continue;
                }
                let what = format!("{act:?} before {} {} of {calls} ({})", call.name, call.path.display(), at);
                if let Err(error) = proof.interrupt(at, act, *uring) {
                    wrong.push(format!("{what}: {error:#}"));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{:?}, {} times:\n{}", operation.verb, wrong.len(), wrong.join("\n"));
    let Report { calls, kills, torn, failures, leaks } = &proof.report;
    eprintln!(
        "{:?}: {calls} calls; {kills} kills, {torn} torn writes, {failures} failures; {leaks} leaks mended",
        operation.verb
    );
    Ok(proof.report)
}

impl Proof<'_> {
    fn interrupt(&mut self, at: usize, act: Act, uring: bool) -> Result<()> {
        let stage = self.before.copy()?;
        let outcome = stage.traced(self.operation.verb, Plan { at: Some((at, act)), uring, from: &[] })?;
        if !outcome.reached {
            // Names are random, and so may be the number of calls.
            ensure!(outcome.code == Some(0), "not reached: {outcome:?}");
            return Ok(());
        }
        let killed = matches!(act, Act::Kill | Act::Tear);
        match act {
            Act::Kill => self.report.kills += 1,
            Act::Tear => self.report.torn += 1,
            Act::Fail(_) | Act::Full => self.report.failures += 1,
        }
        ensure!(killed == outcome.code.is_none(), "it ended otherwise: {outcome:?}");
        let left = look(&stage.folder).with_context(|| format!("what is left is damaged: {}", outcome.complaint))?;
        self.report.leaks += usize::from(!left.leaks.is_empty());
        let (is_old, is_new) = (left.facts == self.old.facts, left.facts == self.new.facts);
        ensure!(
            is_old || is_new || self.is_between(&left),
            "neither the old nor the new state: {}",
            self.differences(&left)
        );
        if !killed {
            let said = outcome.complaint.trim();
            ensure!(!said.contains("panicked"), "it panicked: {said}");
            if outcome.code == Some(0) {
                ensure!(is_new, "it says that it is done, and is not: {}", self.differences(&left));
            } else {
                ensure!(!said.is_empty(), "it says nothing");
            }
            // Where there is no room it may be that nothing can be put right, and cleaning up may be what failed.
        }
        self.goes_on(&stage, &left, at)
    }

    /// Whatever was left, people go on with it.
    fn goes_on(&mut self, stage: &Stage, left: &State, at: usize) -> Result<()> {
        let listed = stage.ok(&["list", "--json"])?;
        ensure!(!listed.contains("\"error\""), "a machine can't be read: {listed}");
        let is_new = left.facts == self.new.facts && self.new.facts != self.old.facts;
        // Each is the first to find what was left, in turn.
        if (at.is_multiple_of(2) || is_new)
            && self.kvm
            && let Some(name) = self.operation.machine
            && left.facts.keys().any(|fact| fact.starts_with(name))
        {
            stage.ok(&["start", name, "--headless"]).context("it does not start")?;
            stage.ok(&["stop", name, "--force", "--without-checkpoint"])?;
            let started = look(&stage.folder).context("after a start")?;
            ensure!(started.facts == left.facts, "a start changes it: {}", differences(&started, left));
            ensure!(started.junk.is_empty(), "it leaves, after a start, {:?}", started.junk);
        }
        if !is_new {
            self.again(stage)?;
        }
        let settled = self.settle(stage)?;
        let most = self.settled.images + self.operation.spare;
        let fits = (self.settled.images..=most).contains(&settled.images) || self.is_between(left);
        ensure!(fits, "{} images, not {} to {most}", settled.images, self.settled.images);
        Ok(())
    }

    /// All of the old is there, and something of the new.
    fn is_between(&self, left: &State) -> bool {
        let new = |(fact, value): (&String, &String)| {
            self.old.facts.contains_key(fact) || self.new.facts.get(fact) == Some(value)
        };
        let mut old = self.old.facts.iter();
        self.operation.adds
            && left.facts.len() > self.old.facts.len()
            && old.all(|(fact, value)| left.facts.get(fact) == Some(value))
            && left.facts.iter().all(new)
    }

    fn settle(&self, stage: &Stage) -> Result<State> {
        for verb in self.operation.settle {
            stage.ok(verb).context("it can't be used any more")?;
        }
        let settled = look(&stage.folder).context("in the end")?;
        ensure!(settled.facts == self.new.facts, "in the end it is {}", differences(&settled, &self.new));
        ensure!(settled.junk.is_empty(), "in the end it leaves {:?}", settled.junk);
        ensure!(settled.leaks.is_empty(), "in the end space is lost: {:?}", settled.leaks);
        Ok(settled)
    }

    fn again(&self, stage: &Stage) -> Result<()> {
        stage.ok(self.operation.verb).context("it can't be done again")?;
        let again = look(&stage.folder).context("done again")?;
        ensure!(
            again.facts == self.new.facts,
            "done again, it is not what it should be: {}",
            differences(&again, &self.new)
        );
        ensure!(again.junk.is_empty(), "done again, it leaves {:?}", again.junk);
        Ok(())
    }

    fn differences(&self, left: &State) -> String {
        format!("from the old: {}; from the new: {}", differences(left, &self.old), differences(left, &self.new))
    }
}

fn differences(one: &State, other: &State) -> String {
    let keys: BTreeSet<&String> = one.facts.keys().chain(other.facts.keys()).collect();
    let lines = keys.into_iter().filter_map(|key| {
        let (a, b) = (one.facts.get(key), other.facts.get(key));
        (a != b).then(|| format!("{key}: {a:?}, not {b:?}"))
    });
    lines.collect::<Vec<_>>().join(", ")
}

/// Writes to a disk as a guest would, all on stable storage.
///
/// # Errors
/// It can't be written.
pub fn write(path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    use std::sync::Arc;
    use vmm_core::backend::disk::{self, Buffers, Disk, OpenOptions, Request, Scratch};
    let mut disk = disk::open(path, OpenOptions { readonly: false, direct: false })?;
    let scratch = Arc::new(Scratch::new(bytes.len()));
    let mut buffers = Buffers::own(&scratch, bytes.len());
    buffers.copy_from(bytes);
    let buffers = Buffers::own(&scratch, bytes.len());
    disk.submit(0, Request::Write { offset, buffers, durable: false });
    disk.drain();
    disk.completed().context("a disk does not answer")?.result?;
    disk.settle()?;
    Ok(())
}
