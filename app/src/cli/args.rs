//! The verbs and flags of `orangery`, and their help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use vmm_core::backend::disk::Format;
use vmm_core::config::{DiskBus, Topology};

use crate::control::Stream;
use crate::jobs::First;
use crate::library::{Firmware, Timeline};
use crate::session::Manner;

const AFTER: &str = "\
Examples:
  orangery                                         open the manager's window
  orangery boot --cdrom debian.iso --new-disk 8G   try an ISO; nothing is kept
  orangery create 'Debian 12' --cdrom debian.iso --new-disk 40G
  orangery run 'Debian 12'                         start it with its window
  orangery send-keys 'Debian 12' 'ls -l' enter     type in it
  orangery list --json                             for scripts

Exit codes:
  0 done   1 failed   2 wrong usage   3 no such virtual machine   4 its state does not allow it
  5 this computer cannot (no /dev/kvm, no firmware, no permission); see 'orangery check'

Virtual machines are folders in ~/.local/share/orangery/machines, or in $ORANGERY_LIBRARY.
With --json an error is one line too: {\"error\":{\"code\":3,\"message\":\"…\"}}.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "orangery", version, about = "Virtual machines on your own computer", after_help = AFTER)]
#[command(disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    /// What to do; without it the manager's window opens
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// Print JSON, for scripts
    #[arg(long, global = true)]
    pub json: bool,
}

/// What `orangery` does.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a virtual machine
    #[command(after_help = "\
Examples:
  orangery create 'Debian 12' --cdrom debian-12.iso --new-disk 40G
  orangery create tiny --kernel vmlinuz --initrd initrd.gz --cmdline 'console=ttyS0' --memory 512
  orangery create old --disk /vms/old.img --disk /vms/data.img,ro")]
    Create {
        /// What to call it; any text that can be read
        name: String,
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Start a throwaway virtual machine, its serial console on this terminal (Ctrl-] leaves)
    #[command(after_help = "\
Nothing is kept: a --new-disk is gone when the machine ends. Exits 0 when the guest powers off.

Examples:
  orangery boot --cdrom debian-12.iso
  orangery boot --headless --kernel vmlinuz --initrd initrd.gz --cmdline 'console=ttyS0'")]
    Boot {
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// List the virtual machines
    #[command(visible_alias = "ls")]
    List,
    /// Say all about one
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// Start one in this terminal's foreground, with its window
    Run {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        manner: MannerArgs,
        /// Descriptors of a machine that was forked off: its state, its memory
        #[arg(long, value_name = "FDS", value_delimiter = ',', hide = true)]
        handover: Vec<i32>,
    },
    /// Start one in the background, with its window
    Start {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        manner: MannerArgs,
    },
    /// Ask the guest to shut down and wait until it has
    Stop {
        #[command(flatten)]
        which: Which,
        /// Pull the plug instead: what the guest has not written is lost, but for a checkpoint on its timeline, if it has one
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        first: FirstArgs,
        /// Give up after this many seconds; the machine then runs on
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        timeout: u64,
    },
    /// Press the reset button: what the guest has not written is lost, but for a checkpoint on its timeline, if it has one
    Reset {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        first: FirstArgs,
    },
    /// Stop its CPUs for a while
    Pause {
        #[command(flatten)]
        which: Which,
    },
    /// Go on after a pause, or where it was suspended
    Resume {
        #[command(flatten)]
        which: Which,
    },
    /// Save it as it runs and end it: its next start goes on from there
    Suspend {
        #[command(flatten)]
        which: Which,
    },
    /// Make another that goes on from this very moment as well, memory and all; both share what neither changes
    Fork {
        #[command(flatten)]
        which: Which,
        /// What to call it [default: its name and a number]
        new: Option<String>,
        /// How many to make, with numbers behind the name
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
        count: u32,
    },
    /// Make another like it, of what it is now while it is off, or of a snapshot, memory and all
    #[command(after_help = "\
Examples:
  orangery clone 'Debian 12' 'Debian 12 for tests' --linked
  orangery clone 'Debian 12' 'Debian before the upgrade' --of 'before the upgrade'")]
    Clone {
        #[command(flatten)]
        which: Which,
        /// What to call it [default: its name and a number]
        new: Option<String>,
        /// The snapshot to clone, by its name or id; the machine may run then
        #[arg(long, value_name = "SNAPSHOT")]
        of: Option<String>,
        /// Share what both have in common instead of copying it: made at once, and takes the space of what differs
        #[arg(long)]
        linked: bool,
    },
    /// Keep checkpoints that are taken by themselves while it runs, look at them, go back
    #[command(after_help = "\
Examples:
  orangery timeline on 'Debian 12' --every 10 --space 20G
  orangery timeline list 'Debian 12'
  orangery timeline restore 'Debian 12' 3f9a
  orangery timeline copy 'Debian 12' 3f9a 'Debian an hour ago'")]
    Timeline {
        #[command(subcommand)]
        act: TimelineAct,
    },
    /// Take, list, go back to and delete snapshots: points it can go back to, its memory included when it runs
    #[command(after_help = "\
Examples:
  orangery snapshot take 'Debian 12' 'before the upgrade'
  orangery snapshot list 'Debian 12'
  orangery snapshot restore 'Debian 12' 'before the upgrade'")]
    Snapshot {
        #[command(subcommand)]
        act: SnapshotAct,
    },
    /// Show its window in front
    Raise {
        #[command(flatten)]
        which: Which,
    },
    /// Give one another name
    Rename {
        #[command(flatten)]
        which: Which,
        /// The new name
        new: String,
    },
    /// Move one to the trash, disks and all ('orangery restore' brings it back)
    Delete {
        #[command(flatten)]
        which: Which,
    },
    /// List what is in the trash, or empty it
    Trash {
        /// Remove for good what is in it
        #[arg(long)]
        empty: bool,
    },
    /// Bring one back from the trash
    Restore {
        #[command(flatten)]
        which: Which,
    },
    /// Put its serial console on this terminal (Ctrl-] leaves)
    Console {
        #[command(flatten)]
        which: Which,
        /// Which console: serial (ttyS0) or virtio (hvc0)
        #[arg(long, value_name = "PORT", default_value = "serial", value_parser = stream)]
        port: Stream,
    },
    /// Save its screen as a PNG
    Screenshot {
        #[command(flatten)]
        which: Which,
        /// Where to; '-' is standard output
        file: PathBuf,
        /// Scale it down to this width
        #[arg(long, value_name = "PIXELS")]
        max_width: Option<u32>,
    },
    /// Type text and press keys in it, as on a US keyboard
    #[command(after_help = "\
An argument that names a key or a chord is pressed, anything else is typed as it is. Keys are called
enter, tab, esc, space, backspace, delete, insert, home, end, pageup, pagedown, up, down, left, right,
f1 … f12, super, menu, print, kp0 … kp9; chords join them: ctrl-c, ctrl-alt-delete, alt-f4, shift-tab.

Examples:
  orangery send-keys 'Debian 12' root enter
  orangery send-keys 'Debian 12' --text enter      type the word 'enter'")]
    SendKeys {
        #[command(flatten)]
        which: Which,
        /// Texts and keys, in order
        #[arg(required = true, allow_hyphen_values = true)]
        keys: Vec<String>,
        /// Type everything as text
        #[arg(long, short)]
        text: bool,
    },
    /// Put an ISO in its CD-ROM drive
    Insert {
        #[command(flatten)]
        which: Which,
        /// The ISO
        iso: PathBuf,
        /// Which drive
        #[arg(long, value_name = "N", default_value_t = 0)]
        drive: usize,
    },
    /// Take the medium out of its CD-ROM drive
    Eject {
        #[command(flatten)]
        which: Which,
        /// Which drive
        #[arg(long, value_name = "N", default_value_t = 0)]
        drive: usize,
    },
    /// Forget its UEFI variables (boot entries, keys); its next start makes new ones
    NvramReset {
        #[command(flatten)]
        which: Which,
    },
    /// Print what happens to it, until it stops
    Events {
        #[command(flatten)]
        which: Which,
    },
    /// Say what a file is and what would be made from it
    Detect {
        /// An ISO, a disk image or a kernel
        file: PathBuf,
    },
    /// Look at disk images, make and change them
    #[command(subcommand)]
    Disk(DiskVerb),
    /// Open the manager's window, with a file as if it had been dropped there: what a double click does
    Open {
        /// An ISO, a disk image or a kernel
        file: Option<PathBuf>,
    },
    /// Check that this computer has what virtual machines need
    Check,
    /// Show the built-in guest: a moving picture, your keys and pointer, and a test of the devices
    Demo {
        /// No window; its test goes to this terminal
        #[arg(long)]
        headless: bool,
    },
}

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotAct {
    /// Take one; a guest that runs is stopped for a moment only
    Take {
        #[command(flatten)]
        which: Which,
        /// What to call it
        snapshot: String,
        /// A note to go with it
        #[arg(long, default_value = "")]
        note: String,
    },
    /// List them as a tree
    List {
        #[command(flatten)]
        which: Which,
    },
    /// Go back to one: what the machine is now is given up, and its next start goes on from there
    Restore {
        #[command(flatten)]
        which: Which,
        /// Its name or id
        snapshot: String,
        /// Take a snapshot of the present first, called this
        #[arg(long, value_name = "NAME")]
        keep: Option<String>,
        #[command(flatten)]
        around: RestoreArgs,
    },
    /// Give one another name or note
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Edit {
        #[command(flatten)]
        which: Which,
        /// Its name or id
        snapshot: String,
        /// The new name
        #[arg(id = "new_name", long = "name", value_name = "NAME", group = "change")]
        name: Option<String>,
        /// The new note; an empty one removes it
        #[arg(long, value_name = "NOTE", group = "change")]
        note: Option<String>,
    },
    /// Delete one; what came after it stays
    Delete {
        #[command(flatten)]
        which: Which,
        /// Its name or id
        snapshot: String,
    },
    /// Say what is different between two, or between one and the present: settings, and how much of disks and memory
    Diff {
        #[command(flatten)]
        which: Which,
        /// The earlier one's name or id
        before: String,
        /// The later one's [default: the present]
        after: Option<String>,
    },
}

/// How a machine is run.
#[derive(Debug, Clone, Copy, Args)]
pub struct MannerArgs {
    /// No window; needs no display
    #[arg(long)]
    pub headless: bool,
    /// What the guest changes is gone when it ends; the machine stays what it is
    #[arg(long)]
    pub without_saving: bool,
}

impl From<MannerArgs> for Manner {
    fn from(MannerArgs { headless, without_saving }: MannerArgs) -> Manner {
        Manner { headless, without_saving }
    }
}

/// What is done before and after a machine goes back.
#[derive(Debug, Clone, Copy, Args)]
pub struct RestoreArgs {
    /// Power off a machine that runs first
    #[arg(long)]
    pub power_off: bool,
    /// Start it afterwards, with its window
    #[arg(long)]
    pub start: bool,
    #[command(flatten)]
    pub first: FirstArgs,
}

/// What is done before something is lost.
#[derive(Debug, Clone, Copy, Args)]
pub struct FirstArgs {
    /// Keep no checkpoint on its timeline first, if it has one
    #[arg(long)]
    without_checkpoint: bool,
}

impl From<FirstArgs> for First {
    fn from(FirstArgs { without_checkpoint }: FirstArgs) -> First {
        if without_checkpoint { First::Lose } else { First::Keep }
    }
}

/// What to do with a timeline.
#[derive(Debug, Subcommand)]
pub enum TimelineAct {
    /// Take checkpoints from now on: all of the last hour are kept, one an hour of the last day, one a day of the last 30
    On {
        #[command(flatten)]
        which: Which,
        /// Minutes between two
        #[arg(long, value_name = "MINUTES", default_value_t = Timeline::default().minutes)]
        every: u32,
        /// What they may take before the oldest go, like 20G
        #[arg(long, value_name = "SIZE", default_value = "20G", value_parser = crate::library::size::parse)]
        space: u64,
    },
    /// Take none any more; those that are there stay
    Off {
        #[command(flatten)]
        which: Which,
    },
    /// List them, the oldest first
    List {
        #[command(flatten)]
        which: Which,
    },
    /// Go back to one: its next start goes on from there. What it is now is kept as a checkpoint while it has a timeline
    Restore {
        #[command(flatten)]
        which: Which,
        /// Its id, or the beginning of it
        checkpoint: String,
        #[command(flatten)]
        around: RestoreArgs,
    },
    /// Make another machine that goes on from there, beside this one
    Copy {
        #[command(flatten)]
        which: Which,
        /// Its id, or the beginning of it
        checkpoint: String,
        /// What to call the machine [default: its name and a number]
        new: Option<String>,
    },
    /// Delete one
    Delete {
        #[command(flatten)]
        which: Which,
        /// Its id, or the beginning of it
        checkpoint: String,
    },
}

/// What `orangery disk` does.
#[derive(Debug, Subcommand)]
pub enum DiskVerb {
    /// Say what an image is, how large for the guest and on the host, and what it stands on
    Info {
        /// The image; a machine may be using it
        file: PathBuf,
    },
    /// Make an empty image, thin: it takes the space that is written
    #[command(after_help = "\
Examples:
  orangery disk create disk.qcow2 40G
  orangery disk create change.qcow2 --backing disk.qcow2    what is written goes to change.qcow2")]
    Create {
        /// Where; its folder must be there, the file not
        file: PathBuf,
        /// Its size, like 40G [default: that of the image below]
        #[arg(value_parser = crate::library::size::parse, required_unless_present = "backing")]
        size: Option<u64>,
        /// Its format [default: raw if it ends in .raw or .img, else qcow2]
        #[arg(long, value_name = "raw|qcow2", value_parser = format)]
        format: Option<Format>,
        /// The image that it stands on, as a path from its own folder
        #[arg(long, value_name = "FILE")]
        backing: Option<PathBuf>,
        /// Bytes of a cluster, like 64K
        #[arg(long, value_name = "SIZE", value_parser = crate::library::size::parse)]
        cluster: Option<u64>,
    },
    /// Copy an image into another format: from raw, qcow2, VMDK, VDI, VHD or VHDX
    #[command(after_help = "\
Examples:
  orangery disk convert appliance.vmdk disk.qcow2
  orangery disk convert disk.qcow2 disk.raw

Ctrl+C leaves the old image as it is, and no new one.")]
    Convert {
        /// What to copy
        from: PathBuf,
        /// Where to; nothing may be there
        to: PathBuf,
        /// Its format [default: raw if it ends in .raw or .img, else qcow2]
        #[arg(long, value_name = "raw|qcow2", value_parser = format)]
        format: Option<Format>,
        /// Bytes of a cluster, like 64K
        #[arg(long, value_name = "SIZE", value_parser = crate::library::size::parse)]
        cluster: Option<u64>,
    },
    /// Make a disk larger; the guest's file systems are then grown in the guest
    #[command(after_help = "\
A disk of a machine is made larger while that is off. One with a timeline keeps a checkpoint there first.")]
    Grow {
        /// The image
        file: PathBuf,
        /// The new size, like 80G; with '+' in front, that much more
        size: String,
        #[command(flatten)]
        first: FirstArgs,
    },
    /// Give a machine, which is off, one more disk: an empty one, that takes the space that the guest writes
    #[command(after_help = "\
Examples:
  orangery disk add debian 40G
  orangery disk add debian 40G --bus nvme")]
    Add {
        #[command(flatten)]
        which: Which,
        /// Its size, like 40G
        #[arg(value_parser = crate::library::size::parse)]
        size: u64,
        /// The controller it is behind [default: the one that the first disk is behind]
        #[arg(long, value_name = "virtio|sata|nvme")]
        bus: Option<DiskBus>,
    },
    /// Have a disk of a machine, which is off and has no snapshots, in another format: it goes on with a copy, and the old image
    /// goes
    #[command(after_help = "\
Examples:
  orangery disk switch debian qcow2
  orangery disk switch debian raw --disk 1

Ctrl+C leaves the machine as it is.")]
    Switch {
        #[command(flatten)]
        which: Which,
        /// The format, raw or qcow2
        #[arg(value_parser = format)]
        format: Format,
        /// Which disk, from 0
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        disk: usize,
    },
    /// Give space back to the host that an image takes and does not need
    Compact {
        /// The image
        file: PathBuf,
    },
    /// Look for what is wrong in an image's own tables
    Check {
        /// The image
        file: PathBuf,
        /// Take leaked space back and count again what is used
        #[arg(long)]
        repair: bool,
    },
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "raw" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        _ => Err("write raw or qcow2".into()),
    }
}

/// Which virtual machine.
#[derive(Debug, Args)]
pub struct Which {
    /// Its name, id or folder
    pub name: String,
}

/// What a virtual machine is made of.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// An ISO in a CD-ROM drive (repeatable); it is started first
    #[arg(long, value_name = "ISO")]
    pub cdrom: Vec<PathBuf>,
    /// An existing disk image, raw or qcow2, or a block device (repeatable); 'ro' makes it read-only, 'bus' chooses its controller:
    /// virtio, sata or nvme
    #[arg(long, value_name = "PATH[,ro][,bus=BUS]", value_parser = disk)]
    pub disk: Vec<DiskArg>,
    /// A new, empty disk, like 40G; it takes the space that is written (repeatable)
    #[arg(long, value_name = "SIZE[,bus=BUS]", value_parser = new_disk)]
    pub new_disk: Vec<NewDiskArg>,
    /// What starts it [default: UEFI where medium and computer can, else BIOS]
    #[arg(long, value_name = "bios|uefi|uefi-secure", value_parser = firmware, conflicts_with = "kernel")]
    pub firmware: Option<Firmware>,
    /// UEFI waits five seconds for Esc, which opens its menu
    #[arg(long, conflicts_with = "kernel")]
    pub boot_menu: bool,
    /// Start this kernel (bzImage, or ELF with a PVH entry) instead of firmware
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", requires = "kernel", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Memory, MiB [default: what suits this computer, 4096 on a large one]
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// CPUs [default: what suits this computer, at most 4]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// How the CPUs are arranged, like 2x4x1 [default: one socket of cores]
    #[arg(long, value_name = "SOCKETSxCORESxTHREADS", value_parser = topology)]
    pub topology: Option<Topology>,
    /// Show the guest Hyper-V's interfaces instead of KVM's: for Windows
    #[arg(long)]
    pub hyperv: bool,
    /// No window: needs no display. (For 'create' it changes nothing: 'run' has the same flag)
    #[arg(long)]
    pub headless: bool,
    /// A network card on an existing tap interface, or one that is not plugged in (repeatable), or none
    #[arg(long, value_name = "none|unplugged|tap=IFNAME", value_parser = net)]
    pub net: Vec<Net>,
    /// A TPM 2.0: swtpm in a process of its own
    #[arg(long)]
    pub tpm: bool,
}

/// An existing disk as the command line has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    /// The image or block device.
    pub path: PathBuf,
    /// The guest may not write.
    pub readonly: bool,
    /// The controller it is behind.
    pub bus: DiskBus,
}

/// Options stand behind the path, so that a path may have commas.
fn disk(text: &str) -> Result<DiskArg, String> {
    let (mut path, mut readonly, mut bus) = (text, false, None);
    while let Some((rest, option)) = path.rsplit_once(',') {
        match option.strip_prefix("bus=") {
            Some(name) if bus.is_none() => bus = Some(name.parse()?),
            None if option == "ro" && !readonly => readonly = true,
            _ => break,
        }
        path = rest;
    }
    Ok(DiskArg { path: path.into(), readonly, bus: bus.unwrap_or_default() })
}

/// A new disk as the command line has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewDiskArg {
    /// Bytes.
    pub size: u64,
    /// The controller it is behind.
    pub bus: DiskBus,
}

fn new_disk(text: &str) -> Result<NewDiskArg, String> {
    let (size, bus) = match text.split_once(",bus=") {
        Some((size, name)) => (size, name.parse()?),
        None => (text, DiskBus::default()),
    };
    Ok(NewDiskArg { size: crate::library::size::parse(size)?, bus })
}

/// A network card as the command line has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Net {
    /// No card.
    None,
    /// One that is not plugged in.
    Unplugged,
    /// One on this tap interface.
    Tap(String),
}

fn net(text: &str) -> Result<Net, String> {
    match text.split_once('=') {
        None if text == "none" => Ok(Net::None),
        None if text == "unplugged" => Ok(Net::Unplugged),
        Some(("tap", name)) if !name.is_empty() => Ok(Net::Tap(name.into())),
        _ => Err("write none, unplugged or tap=IFNAME, like tap=tap0".into()),
    }
}

fn firmware(text: &str) -> Result<Firmware, String> {
    match text {
        "bios" => Ok(Firmware::Bios),
        "uefi" => Ok(Firmware::Uefi),
        "uefi-secure" => Ok(Firmware::UefiSecure),
        _ => Err("write bios, uefi or uefi-secure".into()),
    }
}

fn topology(text: &str) -> Result<Topology, String> {
    let mut numbers = text.split('x').map(|part| part.parse::<u32>().ok().filter(|&number| number > 0));
    match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
        (Some(Some(sockets)), Some(Some(cores)), Some(Some(threads)), None) => Ok(Topology { sockets, cores, threads }),
        _ => Err("write SOCKETSxCORESxTHREADS, like 1x4x2".into()),
    }
}

fn stream(text: &str) -> Result<Stream, String> {
    match text {
        "serial" => Ok(Stream::Serial),
        "virtio" => Ok(Stream::Console),
        _ => Err("write serial or virtio".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_and_flag_says_what_it_does() {
        for verb in Cli::command().get_subcommands() {
            assert!(verb.get_about().is_some(), "{}", verb.get_name());
            for arg in verb.get_arguments().filter(|arg| !arg.is_hide_set()) {
                assert!(arg.get_help().is_some(), "{} {}", verb.get_name(), arg.get_id());
            }
        }
    }

    #[test]
    fn a_disks_options_stand_behind_its_path() {
        let [.., last] = DiskBus::ALL;
        let parsed = |path: &str, readonly, bus| Ok(DiskArg { path: path.into(), readonly, bus });
        assert_eq!(disk("/a.img"), parsed("/a.img", false, DiskBus::default()));
        assert_eq!(disk("/a.img,ro"), parsed("/a.img", true, DiskBus::default()));
        assert_eq!(disk("/a,b.img"), parsed("/a,b.img", false, DiskBus::default()));
        let name = last.name();
        for text in [format!("/a,ro.img,ro,bus={name}"), format!("/a,ro.img,bus={name},ro")] {
            assert_eq!(disk(&text), parsed("/a,ro.img", true, last));
        }
        assert!(disk("/a.img,bus=floppy").unwrap_err().contains(name));
        assert_eq!(new_disk(&format!("1G,bus={name}")), Ok(NewDiskArg { size: 1 << 30, bus: last }));
        assert_eq!(new_disk("1G"), Ok(NewDiskArg { size: 1 << 30, bus: DiskBus::default() }));
        assert!(new_disk("1G,bus=floppy").is_err() && new_disk("1G,ro").is_err());
    }

    #[test]
    fn firmware_has_three_names() {
        assert_eq!(firmware("bios"), Ok(Firmware::Bios));
        assert_eq!(firmware("uefi"), Ok(Firmware::Uefi));
        assert_eq!(firmware("uefi-secure"), Ok(Firmware::UefiSecure));
        assert!(firmware("UEFI").is_err() && firmware("").is_err());
    }

    #[test]
    fn a_topology_is_three_numbers() {
        assert_eq!(topology("2x4x1"), Ok(Topology { sockets: 2, cores: 4, threads: 1 }));
        assert!(["", "2", "2x4", "2x4x1x1", "0x4x1", "2x-4x1", "ax4x1"].iter().all(|text| topology(text).is_err()));
    }

    #[test]
    fn networks_are_none_or_a_tap() {
        assert_eq!(net("none"), Ok(Net::None));
        assert_eq!(net("unplugged"), Ok(Net::Unplugged));
        assert_eq!(net("tap=tap0"), Ok(Net::Tap("tap0".into())));
        assert!(net("tap=").is_err() && net("user").is_err() && net("").is_err());
    }
}
