//! What each verb does.

use std::io::Write;
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use vmm_core::config::{
    Boot, CdromConfig, DiskConfig, DisplayConfig, MIN_UEFI_MEMORY_MIB, NetConfig, Topology, VmConfig,
};

use super::args::{Cli, DiskArg, MachineArgs, Net, NewDiskArg, Verb, Which};
use super::output::{Checked, Deleted, Detected, Listed, Shown, table, words};
use super::progress::Progress;
use super::{CliError, Exit, print, snapshots};
use crate::control::protocol::Request;
use crate::control::{Client, ControlError, Power, State, keys};
use crate::jobs::{First, JobError, verbs as jobs};
use crate::library::{
    self, Entry, Firmware, HostLimits, Library, Machine, NewDisk, NewMachine, UefiSupport, preflight,
};
use crate::session::{self, Announcement, Handover, Manner, Throwaway};

/// How long a machine may take to say how it is, for a list of many.
const GLANCE: Duration = Duration::from_secs(2);
/// Between two looks at a machine that is shutting down.
const POLL: Duration = Duration::from_millis(50);

/// Does what the command line says.
pub fn perform(cli: Cli) -> Result<(), CliError> {
    let out = Out { json: cli.json };
    let Some(verb) = cli.verb else { return manager(None) };
    match verb {
        Verb::Create { name, machine } => create(out, name, &machine),
        Verb::Boot { machine } => boot(&machine),
        Verb::List => list(out),
        Verb::Show { which } => show(out, &which),
        Verb::Run { which, manner, handover } => run(out, &which, manner.into(), &handover),
        Verb::Fork { which, new, count } => fork(out, &which, new.as_deref(), count),
        Verb::Start { which, manner } => start(out, &which, manner.into()),
        Verb::Stop { which, force: false, first: _, timeout } => stop(out, &which, Duration::from_secs(timeout)),
        Verb::Stop { which, force: true, first, timeout: _ } => power_off(out, &which, first.into()),
        Verb::Reset { which, first } => {
            let mut progress = told(out, &which.name, "keeping a checkpoint");
            let machine = jobs::reset(&library()?, &which.name, first.into(), &mut progress)?;
            out.say(&json!({ "done": "reset" }), &format!("{:?}: reset", machine.name));
            Ok(())
        }
        Verb::Pause { which } => command(out, &which, &Request::Pause, "paused"),
        Verb::Resume { which } => resume(out, &which),
        Verb::Suspend { which } => suspend(out, &which),
        Verb::Clone { which, new, of, linked } => snapshots::clone(out, &which, new, of, linked),
        Verb::Timeline { act } => super::timeline::perform(out, &act),
        Verb::Snapshot { act } => snapshots::perform(out, &act),
        Verb::Raise { which } => command(out, &which, &Request::Raise, "raised"),
        Verb::Rename { which, new } => {
            let machine = library()?.rename(&which.name, &new)?;
            out.machine(&machine, &format!("{:?} is now called {:?}", which.name, machine.name));
            Ok(())
        }
        Verb::Delete { which } => {
            let trashed = library()?.trash(&which.name)?;
            let name = library::quoted(&trashed.name);
            let text = format!("{:?} is in the trash; bring it back with: orangery restore {name}", trashed.name);
            out.say(&Deleted::from(&trashed), &text);
            Ok(())
        }
        Verb::Trash { empty } => trash(out, empty),
        Verb::Restore { which } => restore(out, &which),
        Verb::Console { which, port } => {
            let (machine, client) = connect(&which)?;
            let attached = client.attach(port).map_err(asked(&machine))?;
            session::attach(attached).map_err(|source| CliError::Io { what: "use the terminal".into(), source })
        }
        Verb::Screenshot { which, file, max_width } => screenshot(out, &which, &file, max_width),
        Verb::SendKeys { which, keys, text } => send_keys(out, &which, &keys, text),
        Verb::Insert { which, iso, drive } => medium(out, &which, drive, Some(iso)),
        Verb::Eject { which, drive } => medium(out, &which, drive, None),
        Verb::NvramReset { which } => nvram_reset(out, &which),
        Verb::Events { which } => events(&which),
        Verb::Detect { file } => {
            let medium = library::detect(&file)?;
            let name = medium.suggested_name();
            let warning = medium.warning().map(|text| format!("\n{text}")).unwrap_or_default();
            out.say(
                &Detected::from(&medium),
                &format!("{}\nA machine made from it: {name:?}{warning}", medium.describe()),
            );
            Ok(())
        }
        Verb::Disk(verb) => super::disk::perform(out, verb),
        Verb::Open { file } => manager(file),
        Verb::Check => check(out),
        Verb::Demo { headless } => {
            let demo = session::demo(headless)?;
            let announce = |announcement: &Announcement| out.say(announcement, "");
            Ok(session::boot(&demo, out.json.then_some(&announce as &dyn Fn(&Announcement)))?)
        }
    }
}

/// Where a verb's answer goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out {
    /// As JSON.
    pub(super) json: bool,
}

impl Out {
    /// Prints an answer: as one line of JSON, or in words (nothing when there are none).
    pub(super) fn say(self, value: &impl Serialize, text: &str) {
        if self.json {
            // The shapes have string keys and finite numbers only: they always serialise.
            print(&format!("{}\n", serde_json::to_string(value).unwrap_or_default()));
        } else if !text.is_empty() {
            print(&format!("{}\n", text.trim_end()));
        }
    }

    /// Answers with a machine.
    pub(super) fn machine(self, machine: &Machine, text: &str) {
        // The answer is about the machine; that it cannot be asked how it is spoils nothing.
        let (power, state) = look(machine).unwrap_or_else(|_| (machine.power_at_rest(), None));
        self.say(&Shown::new(machine, power, state.as_ref()), text);
    }
}

pub(super) fn library() -> Result<Library, CliError> {
    Ok(Library::open_default()?)
}

#[cfg(feature = "gui")]
fn manager(open: Option<PathBuf>) -> Result<(), CliError> {
    let failed = |error: anyhow::Error| CliError::Words(Exit::Host, format!("{error:#}"));
    crate::manager::run(crate::manager::Options { open, ..Default::default() }).map_err(failed)
}

#[cfg(not(feature = "gui"))]
fn manager(_open: Option<PathBuf>) -> Result<(), CliError> {
    let text = "this Orangery was built without windows; 'orangery --help' lists what it can do";
    Err(CliError::Words(Exit::Usage, text.into()))
}

/// What starts the machine: what was asked for, or what suits the medium that it starts from.
fn boot_of(args: &MachineArgs, memory_mib: u64) -> Result<Boot, CliError> {
    if let Some(kernel) = &args.kernel {
        let cmdline = args.cmdline.clone().unwrap_or_default();
        return Ok(Boot::Kernel { kernel: kernel.clone(), initrd: args.initrd.clone(), cmdline });
    }
    let firmware = match args.firmware {
        Some(firmware) => firmware,
        None => {
            let first = args.cdrom.first().cloned().or_else(|| args.disk.first().map(|disk| disk.path.clone()));
            // A file that is nothing to start from, or not there, is told of by whoever opens it.
            let medium = first.and_then(|path| library::detect(&path).ok());
            let fits = memory_mib >= MIN_UEFI_MEMORY_MIB;
            let support = if fits { UefiSupport::read() } else { UefiSupport::Missing };
            Firmware::choose(medium.as_ref().map(|medium| &medium.kind), support)
        }
    };
    let mut boot = firmware.boot();
    match &mut boot {
        Boot::Uefi { menu, .. } => *menu = args.boot_menu,
        _ if args.boot_menu => {
            return Err(CliError::Words(
                Exit::Usage,
                "--boot-menu is for UEFI, and this machine starts with a BIOS".into(),
            ));
        }
        _ => {}
    }
    Ok(boot)
}

/// How many CPUs were asked for, by number or by their arrangement.
fn cpus(args: &MachineArgs) -> Option<u32> {
    args.cpus.or(args.topology.and_then(Topology::cpus))
}

fn nets(args: &MachineArgs) -> Result<Vec<NetConfig>, CliError> {
    let taps = args.net.iter().filter_map(|net| match net {
        Net::None => None,
        Net::Unplugged => Some(NetConfig { tap: None, mac: None }),
        Net::Tap(name) => Some(NetConfig { tap: Some(name.clone()), mac: None }),
    });
    let taps: Vec<NetConfig> = taps.collect();
    if args.net.contains(&Net::None) && !taps.is_empty() {
        return Err(CliError::Words(Exit::Usage, "--net none contradicts the other --net".into()));
    }
    Ok(taps)
}

fn create(out: Out, name: String, args: &MachineArgs) -> Result<(), CliError> {
    let library = library()?;
    let mut new = NewMachine::with_defaults(name, &HostLimits::read(library.root()));
    new.cpus = cpus(args).unwrap_or(new.cpus);
    (new.topology, new.hyperv) = (args.topology, args.hyperv);
    new.memory_mib = args.memory.unwrap_or(new.memory_mib);
    new.boot = boot_of(args, new.memory_mib)?;
    let existing =
        args.disk.iter().cloned().map(|DiskArg { path, readonly, bus }| NewDisk::Existing { path, readonly, bus });
    let made = args.new_disk.iter().map(|&NewDiskArg { size, bus }| NewDisk::Create { size, bus });
    new.disks = existing.chain(made).collect();
    if !args.cdrom.is_empty() {
        new.cdroms = args.cdrom.iter().cloned().map(Some).collect();
    }
    new.nets = nets(args)?;
    new.tpm = args.tpm || library::default_tpm(&new.boot);
    let machine = library.create(&new)?;
    let (name, folder) = (library::quoted(&machine.name), machine.folder().display());
    out.machine(&machine, &format!("Made {:?} in {folder}\nStart it with: orangery run {name}", machine.name));
    Ok(())
}

fn boot(args: &MachineArgs) -> Result<(), CliError> {
    // Nothing of the host is looked at that need not be: this is the way to a guest's first instruction.
    let disks = args.disk.iter().cloned();
    let disks = disks.map(|DiskArg { path, readonly, bus }| DiskConfig { readonly, bus, ..DiskConfig::new(path) });
    let defaults = || HostLimits::read(Path::new("/var/tmp"));
    let memory_mib = args.memory.unwrap_or_else(|| defaults().default_memory_mib());
    let mut boot = boot_of(args, memory_mib)?;
    if let Boot::Uefi { variables, .. } = &mut boot {
        // They go with the machine.
        *variables = None;
    }
    let config = VmConfig {
        cpus: cpus(args).unwrap_or_else(|| defaults().default_cpus()),
        memory_mib,
        boot,
        disks: disks.collect(),
        cdroms: args.cdrom.iter().map(|path| CdromConfig { path: Some(path.clone()) }).collect(),
        nets: nets(args)?,
        display: DisplayConfig::default(),
        tpm: args.tpm,
        topology: args.topology,
        hyperv: args.hyperv,
        uuid: None,
    };
    let first = args.cdrom.first().or(args.kernel.as_ref());
    let file = first.and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
    let mut throwaway = Throwaway::new(file.unwrap_or_else(|| "Throwaway".into()), config, args.headless);
    for &NewDiskArg { size, bus } in &args.new_disk {
        throwaway
            .add_disk(size, bus)
            .map_err(|source| CliError::Io { what: "make a temporary disk".into(), source })?;
    }
    Ok(session::boot(&throwaway, None)?)
}

/// What a machine does, and all it says of itself when it answers.
fn look(machine: &Machine) -> Result<(Power, Option<State>), CliError> {
    if machine.runner()?.is_none() {
        return Ok((machine.power_at_rest(), None));
    }
    let state = Client::connect_within(&machine.id, GLANCE).and_then(|mut client| client.state()).ok();
    // Its lock is held and its socket is silent: it is on its way up or down.
    Ok((state.as_ref().map_or(Power::Starting, |state| state.power), state))
}

/// What a machine does, and the process it does it in; 0 when it does not run.
fn power(machine: &Machine) -> (Power, u32) {
    let pid = machine.runner().ok().flatten().map_or(0, |holder| holder.pid);
    let (power, _) = look(machine).unwrap_or_else(|_| (machine.power_at_rest(), None));
    (power, pid)
}

fn list(out: Out) -> Result<(), CliError> {
    let entries = library()?.list()?;
    let listed = |entry: &Entry| Listed::new(entry, entry.machine.as_ref().ok().map(power));
    let listed: Vec<Listed> = entries.iter().map(listed).collect();
    if listed.is_empty() {
        out.say(
            &listed,
            "There are no virtual machines yet. Make one with: orangery create NAME --cdrom ISO --new-disk 40G",
        );
        return Ok(());
    }
    let mut rows = vec![["NAME", "STATE", "CPUS", "MEMORY", "PROCESS"].map(String::from).to_vec()];
    for machine in &listed {
        let cell = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        rows.push(vec![
            machine.name.clone(),
            machine.state.into(),
            cell(machine.cpus.map(|n| n.to_string())),
            cell(machine.memory_mib.map(|mib| library::size::human(mib << 20))),
            cell(machine.pid.map(|pid| pid.to_string())),
        ]);
    }
    let broken: String = listed.iter().filter_map(|machine| Some(format!("\n{}", machine.error.as_ref()?))).collect();
    out.say(&listed, &format!("{}{broken}", table(&rows)));
    Ok(())
}

fn show(out: Out, which: &Which) -> Result<(), CliError> {
    let machine = library()?.load(&which.name)?;
    let (power, state) = look(&machine)?;
    let shown = Shown::new(&machine, power, state.as_ref());
    out.say(&shown, &words(&shown));
    Ok(())
}

fn run(out: Out, which: &Which, manner: Manner, handover: &[i32]) -> Result<(), CliError> {
    let library = library()?;
    let machine = library.load(&which.name)?;
    let handover = handed_over(handover)?;
    Ok(session::run(&library, machine, manner, handover, |announcement| out.say(announcement, ""))?)
}

/// The files that this process was given, by their numbers.
fn handed_over(numbers: &[i32]) -> Result<Option<Handover>, CliError> {
    let file = |&number: &i32| {
        // SAFETY: only asks for a flag.
        if number <= 2 || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            let text = format!("--handover is for Orangery itself, and {number} is no file that it was given");
            return Err(CliError::Words(Exit::Usage, text));
        }
        // SAFETY: the descriptor is open, and was given to this process for nothing else.
        Ok(unsafe { std::fs::File::from_raw_fd(number) })
    };
    let distinct: std::collections::BTreeSet<_> = numbers.iter().collect();
    if distinct.len() != numbers.len() {
        return Err(CliError::Words(Exit::Usage, "--handover names a file twice".into()));
    }
    let mut files = numbers.iter().map(file).collect::<Result<Vec<_>, _>>()?.into_iter();
    Ok(files.next().map(|state| Handover { state, layers: files.collect() }))
}

fn fork(out: Out, which: &Which, name: Option<&str>, count: u32) -> Result<(), CliError> {
    let library = library()?;
    let machine = library.load(&which.name)?;
    let mut made = Vec::new();
    for _ in 0..count {
        let fork = match name {
            Some(name) if count == 1 => name.to_string(),
            _ => library.free_fork_name(name.unwrap_or(&machine.name))?,
        };
        jobs::fork(&library, &machine.id, &fork, &mut told(out, &machine.name, "forking"))?;
        made.push(fork);
    }
    out.say(&json!({ "forks": made }), &format!("{:?}: forked {}", machine.name, made.join(", ")));
    Ok(())
}

fn start(out: Out, which: &Which, manner: Manner) -> Result<(), CliError> {
    let library = library()?;
    let machine = library.load(&which.name)?;
    if let Some(holder) = machine.holder()? {
        return Err(machine.held_by(&holder).into());
    }
    let pid = session::launch(&library, &machine, manner)?;
    let started = Announcement::Started { id: machine.id, name: machine.name.clone(), pid };
    out.say(&started, &format!("{:?} runs (process {pid})", machine.name));
    Ok(())
}

/// The machine and a connection to the process that runs it.
pub(super) fn connect(which: &Which) -> Result<(Machine, Client), CliError> {
    let machine = library()?.load(&which.name)?;
    if machine.holder()?.is_none() {
        return Err(asked(&machine)(ControlError::NotRunning));
    }
    let client = Client::connect(&machine.id).map_err(asked(&machine))?;
    Ok((machine, client))
}

fn asked(machine: &Machine) -> impl Fn(ControlError) -> CliError + use<> {
    let of = JobError::of(machine);
    move |error| of(error).into()
}

fn command(out: Out, which: &Which, request: &Request, done: &'static str) -> Result<(), CliError> {
    let (machine, mut client) = connect(which)?;
    client.command(request).map_err(asked(&machine))?;
    out.say(&json!({ "done": done }), &format!("{:?}: {done}", machine.name));
    Ok(())
}

fn resume(out: Out, which: &Which) -> Result<(), CliError> {
    let machine = library()?.load(&which.name)?;
    match machine.holder()? {
        None if machine.goes_on_from()?.is_some() => start(out, which, Manner::default()),
        _ => command(out, which, &Request::Resume, "resumed"),
    }
}

fn suspend(out: Out, which: &Which) -> Result<(), CliError> {
    let machine = jobs::suspend(&library()?, &which.name, &mut told(out, &which.name, "suspending"))?;
    // Its process ends when its files are closed.
    while machine.holder()?.is_some() {
        std::thread::sleep(POLL);
    }
    out.say(&json!({ "done": "suspended" }), &format!("{:?}: suspended", machine.name));
    Ok(())
}

/// Who hears how far work on a machine is. Always says to go on: Ctrl+C ends this program, and with it the work.
pub(super) fn told(out: Out, machine: &str, doing: &str) -> impl FnMut(u64, u64) -> bool + use<> {
    let (what, mut shown) = (format!("{machine:?}: {doing}"), Progress::new(out.json));
    move |done, total| {
        shown.tell(done, total, |percent| format!("{what}, {percent} %"));
        true
    }
}

fn power_off(out: Out, which: &Which, first: First) -> Result<(), CliError> {
    let library = library()?;
    let was_suspended = library.load(&which.name)?.power_at_rest() == Power::Suspended;
    let machine = jobs::power_off(&library, &which.name, first, &mut told(out, &which.name, "keeping a checkpoint"))?;
    let rest = match (was_suspended, machine.timeline.filter(|_| first == First::Keep)) {
        (false, _) => "",
        (true, None) => "; what was suspended is given up",
        (true, Some(_)) => "; what was suspended is a checkpoint of its timeline",
    };
    out.say(&json!({ "done": "stopped" }), &format!("{:?}: stopped{rest}", machine.name));
    Ok(())
}

fn stop(out: Out, which: &Which, timeout: Duration) -> Result<(), CliError> {
    let machine = library()?.load(&which.name)?;
    if machine.holder()?.is_none() {
        return Err(asked(&machine)(ControlError::NotRunning));
    }
    match Client::connect(&machine.id).and_then(|mut client| client.command(&Request::ShutDown)) {
        Ok(()) => {}
        // It stopped by itself meanwhile.
        Err(ControlError::NotRunning) if machine.holder()?.is_none() => {}
        Err(error) => return Err(asked(&machine)(error)),
    }
    let until = Instant::now() + timeout;
    while machine.holder()?.is_some() {
        if Instant::now() >= until {
            let text = format!(
                "{:?} was asked to shut down and still runs after {} s; wait longer (--timeout) or pull the plug (--force)",
                machine.name,
                timeout.as_secs()
            );
            return Err(CliError::Words(Exit::State, text));
        }
        std::thread::sleep(POLL);
    }
    out.say(&json!({ "done": "stopped" }), &format!("{:?}: stopped", machine.name));
    Ok(())
}

fn trash(out: Out, empty: bool) -> Result<(), CliError> {
    let library = library()?;
    if empty {
        let removed = library.empty_trash()?;
        out.say(&json!({ "removed": removed }), &format!("Removed {removed} from the trash"));
        return Ok(());
    }
    let trashed = library.trashed()?;
    let deleted: Vec<Deleted<'_>> = trashed.iter().map(Deleted::from).collect();
    let rows: Vec<Vec<String>> = deleted.iter().map(|d| vec![d.name.to_string(), d.deleted.to_string()]).collect();
    out.say(&deleted, &if rows.is_empty() { "The trash is empty.".into() } else { table(&rows) });
    Ok(())
}

fn restore(out: Out, which: &Which) -> Result<(), CliError> {
    let library = library()?;
    // The last deleted first: that is the one a person means.
    let trashed = library.trashed()?;
    let found = trashed.iter().find(|t| t.id == which.name || library::name::same(&t.name, which.name.trim()));
    let Some(found) = found else {
        return Err(CliError::Words(Exit::NotFound, format!("there is nothing called {:?} in the trash", which.name)));
    };
    let machine = library.restore(found)?;
    out.machine(&machine, &format!("{:?} is back", machine.name));
    Ok(())
}

fn screenshot(out: Out, which: &Which, file: &Path, max_width: Option<u32>) -> Result<(), CliError> {
    let (machine, mut client) = connect(which)?;
    let shot = client.screenshot(max_width).map_err(asked(&machine))?;
    let failed = |source| CliError::Io { what: format!("write {}", file.display()), source };
    if file == Path::new("-") {
        return std::io::stdout().lock().write_all(&shot.png).map_err(failed);
    }
    std::fs::write(file, &shot.png).map_err(failed)?;
    let (width, height) = (shot.width, shot.height);
    let answer = json!({ "file": file, "width": width, "height": height });
    out.say(&answer, &format!("{width} × {height} pixels in {}", file.display()));
    Ok(())
}

fn send_keys(out: Out, which: &Which, args: &[String], text: bool) -> Result<(), CliError> {
    // All of it is checked before any of it is typed.
    for argument in args {
        if text || !keys::is_name(argument) {
            keys::typing(argument).map_err(|problem| CliError::Words(Exit::Usage, problem))?;
        }
    }
    let (machine, mut client) = connect(which)?;
    for argument in args {
        let sent = if text || !keys::is_name(argument) { client.type_text(argument) } else { client.press(argument) };
        sent.map_err(asked(&machine))?;
    }
    out.say(&json!({ "done": "sent" }), "");
    Ok(())
}

fn medium(out: Out, which: &Which, drive: usize, path: Option<PathBuf>) -> Result<(), CliError> {
    let library = library()?;
    let mut machine = library.load(&which.name)?;
    if let Some(path) = &path {
        library::detect(path)?;
    }
    let running = machine.holder()?.is_some();
    if running {
        let mut client = Client::connect(&machine.id).map_err(asked(&machine))?;
        client.change_medium(drive, path.as_deref()).map_err(asked(&machine))?;
    }
    // Also for its next start.
    let drives = machine.config.cdroms.len();
    let Some(slot) = machine.config.cdroms.get_mut(drive) else {
        let text = format!("{:?} has {drives} CD-ROM drives, the first is 0; there is no {drive}", machine.name);
        return Err(CliError::Words(Exit::Usage, text));
    };
    let absolute = path.map(std::path::absolute).transpose();
    slot.path = absolute.map_err(|source| CliError::Io { what: "find the medium".into(), source })?;
    library.save(&machine)?;
    let done = if machine.config.cdroms[drive].path.is_some() { "inserted" } else { "ejected" };
    out.say(&json!({ "done": done }), &format!("{:?}: {done}", machine.name));
    Ok(())
}

fn nvram_reset(out: Out, which: &Which) -> Result<(), CliError> {
    let had = library()?.reset_variables(&which.name)?;
    let text = if had { "its UEFI variables are reset" } else { "it had no UEFI variables yet" };
    out.say(&json!({ "done": "reset", "had": had }), &format!("{:?}: {text}", which.name));
    Ok(())
}

fn events(which: &Which) -> Result<(), CliError> {
    let (machine, client) = connect(which)?;
    for event in client.listen().map_err(asked(&machine))? {
        print(&format!("{}\n", serde_json::to_string(&event).unwrap_or_default()));
    }
    Ok(())
}

fn check(out: Out) -> Result<(), CliError> {
    let root = Library::default_root()?;
    let checks = library::preflight(&root);
    let fine = preflight::can_start(&checks);
    let checked: Vec<Checked> = checks.into_iter().map(Checked::from).collect();
    let mut text = String::new();
    for check in &checked {
        let mark = match check.outcome {
            "good" => "✓",
            "warning" => "!",
            _ => "✗",
        };
        text += &format!("{mark} {}: {}\n", check.what, check.text);
        for line in check.remedy.iter() {
            text += &format!("  {line}\n");
        }
        for command in check.command.iter() {
            text += &format!("    {command}\n");
        }
    }
    out.say(&checked, &text);
    if fine { Ok(()) } else { Err(CliError::Words(Exit::Host, "virtual machines cannot start here yet".into())) }
}
