//! The boot matrix: which media start, on which firmware, from which controller, and what they do then. [`TABLE`] is the
//! whole of it; `./dev matrix` runs all rows, the tests run the quick ones.

mod media;
mod table;

use std::fmt;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::kvm::Kvm;
use crate::machine::Machine;
use crate::nested::Host;
use crate::screen::{Colour, Image};

pub use media::{Made, Medium};
pub use table::TABLE;

/// How long a row's machine may run: emulated hosts are slow, and this only stops what hangs.
const LIFE: Duration = Duration::from_secs(1200);

/// How long somebody waits before they press a key again.
const AGAIN: Duration = Duration::from_secs(2);

/// How long copying a disk may take.
const COPY: Duration = Duration::from_secs(300);

/// What a machine of the matrix starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// The distribution's OVMF.
    Uefi,
    /// The same, which starts only what is signed.
    SecureBoot,
    /// None: the monitor loads a kernel.
    Direct,
}

impl Firmware {
    fn flags(self) -> &'static str {
        match self {
            Firmware::Bios => "--firmware bios",
            Firmware::Uefi => "--firmware uefi",
            Firmware::SecureBoot => "--firmware uefi-secure",
            Firmware::Direct => "",
        }
    }
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Firmware::Bios => "BIOS",
            Firmware::Uefi => "UEFI",
            Firmware::SecureBoot => "UEFI, Secure Boot",
            Firmware::Direct => "none (direct)",
        })
    }
}

/// Where its medium is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a CD-ROM drive.
    Cdrom,
    /// On a disk behind virtio-blk.
    VirtioBlk,
    /// On a SATA disk.
    Sata,
    /// On an NVMe disk.
    Nvme,
    /// Given to the monitor as files.
    Files,
    /// There is no medium.
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Place::Cdrom => "CD-ROM on AHCI",
            Place::VirtioBlk => "disk on virtio-blk",
            Place::Sata => "SATA disk",
            Place::Nvme => "NVMe disk",
            Place::Files => "kernel's files",
            Place::Nowhere => "–",
        })
    }
}

/// A part of a screen: what it shows in a word or two, and the PNG file's bytes.
#[derive(Clone, Copy)]
pub struct Part(&'static str, &'static [u8]);

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What a person at the machine would see and do.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// All of these texts stand on the screen at once.
    Screen(&'static [&'static str]),
    /// The screen shows the text, then changes and shows it still: something counts.
    Counts(&'static str),
    /// Most of the screen has this colour, in five pictures of which no two are alike: something counts there, in a font of
    /// its own.
    Paper(Colour),
    /// The screen shows this picture, a PNG file, somewhere.
    Shows(Part),
    /// The serial port has said this.
    Serial(&'static str),
    /// These words of `orangery send-keys`, in the shell's syntax, are typed.
    Keys(&'static str),
    /// These are typed, as by somebody who waits for a menu, again and again until the serial port has said the text: what
    /// is typed while firmware starts its keyboard is lost.
    KeysUntil(&'static str, &'static str),
    /// A picture is kept for the table; steps that look at the screen do that anyway.
    Photograph,
    /// The reset button is pressed.
    Reset,
    /// The machine switches itself off.
    Off,
}

/// One line of the matrix.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// A plain word, for files.
    pub name: &'static str,
    /// What is started.
    pub medium: Medium,
    /// By what.
    pub firmware: Firmware,
    /// From where.
    pub place: Place,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory: u32,
    /// Other flags of `orangery create`.
    pub extra: &'static str,
    /// What must happen, in order.
    pub steps: &'static [Step],
    /// The tests run it; the others are for `./dev matrix` alone.
    pub quick: bool,
}

/// What a row came to.
#[derive(Debug)]
pub struct Outcome {
    /// What was seen, and how many seconds after the start.
    pub seen: Vec<(&'static str, f64)>,
    /// The medium's package and version.
    pub version: String,
    /// The screen's last picture, where there was one.
    pub picture: Option<PathBuf>,
}

impl Row {
    /// Starts the machine and goes through the steps.
    ///
    /// # Errors
    /// The medium can't be made, or a step did not come.
    pub fn run(&self, host: &Host) -> Result<Outcome> {
        if matches!(self.firmware, Firmware::Uefi | Firmware::SecureBoot) {
            host.prepare_for_uefi()?;
        }
        let medium = self.medium.make()?;
        let path = |index: usize| {
            let path: &PathBuf = medium.files.get(index).context("the medium has no such file")?;
            Ok::<_, anyhow::Error>(path.display())
        };
        let place = match self.place {
            Place::Cdrom => format!("--cdrom '{}'", path(0)?),
            Place::VirtioBlk | Place::Sata | Place::Nvme => {
                // The machine writes to it.
                let (from, to) = (path(0)?, self.disk(host));
                let copy = format!("mkdir -p '{}' && cp --sparse=always '{from}' {to}", host.scratch().display());
                host.run("copy", &copy, COPY)?.success()?;
                let bus = match self.place {
                    Place::Sata => "sata",
                    Place::Nvme => "nvme",
                    _ => "virtio",
                };
                format!("--disk {},bus={bus}", self.disk(host))
            }
            Place::Files => format!("--kernel '{}' --initrd '{}' --cmdline '{}'", path(0)?, path(1)?, medium.words),
            Place::Nowhere => String::new(),
        };
        let (cpus, memory, extra, firmware) = (self.cpus, self.memory, self.extra, self.firmware.flags());
        let flags = format!("--memory {memory} --cpus {cpus} --net none {firmware} {extra} {place}");
        let begun = Instant::now();
        let mut machine = Machine::start_for(host, self.name, &flags, LIFE)?;
        let mut seen = Vec::new();
        let mut picture = None;
        let mut stopped = false;
        let mut result = Ok(());
        for step in self.steps {
            result = perform(&mut machine, step).with_context(|| format!("{}: {step:?}", self.name));
            if result.is_err() {
                break;
            }
            if let Some(what) = step.seen() {
                seen.push((what, begun.elapsed().as_secs_f64()));
            }
            picture = match step {
                Step::Screen(_) | Step::Counts(_) | Step::Paper(_) | Step::Shows(_) => machine.last_picture(),
                Step::Photograph => machine.photograph().ok(),
                Step::Serial(_) | Step::Keys(_) | Step::KeysUntil(..) | Step::Reset | Step::Off => picture,
            };
            stopped = matches!(step, Step::Off);
        }
        if !stopped {
            picture = machine.photograph().ok().or(picture);
            machine.end()?;
        }
        host.run("remove", &format!("rm -f {}", self.disk(host)), COPY)?.success()?;
        result?;
        Ok(Outcome { seen, version: medium.version, picture })
    }

    /// The machine's own copy of its disk, in the shell's syntax.
    fn disk(&self, host: &Host) -> String {
        format!("'{}/{}.img'", host.scratch().display(), self.name)
    }
}

impl Step {
    /// What a person has seen when it is done, in a few words; none where it is they who act.
    fn seen(&self) -> Option<&'static str> {
        match *self {
            Step::Screen(texts) => texts.first().copied().map(str::trim),
            Step::Counts(_) | Step::Paper(_) => Some("counts"),
            Step::Shows(Part(what, _)) => Some(what),
            Step::Serial(text) | Step::KeysUntil(_, text) => Some(text.trim()),
            Step::Off => Some("off"),
            Step::Keys(_) | Step::Photograph | Step::Reset => None,
        }
    }
}

fn perform(machine: &mut Machine<'_>, step: &Step) -> Result<()> {
    match *step {
        Step::Screen(texts) => {
            let all = |screen: &str| texts.iter().all(|text| screen.contains(text));
            machine.wait_for_screen(&format!("{texts:?}"), all).map(drop)
        }
        Step::Counts(text) => {
            let first = machine.wait_for_screen(text, |screen| screen.contains(text))?;
            machine.wait_for_screen("a change", |screen| screen.contains(text) && screen != first).map(drop)
        }
        Step::Paper(colour) => {
            let is_there = |picture: &Image| {
                let places = (0..picture.width).flat_map(|x| (0..picture.height).map(move |y| (x, y)));
                2 * places.filter(|&(x, y)| picture.at(x, y) == colour).count() > picture.width * picture.height
            };
            let mut seen: Vec<Image> = Vec::new();
            machine.wait_for_picture("a picture that changes", |picture| {
                if is_there(picture) && seen.iter().all(|old| old.differences(picture) > 0) {
                    seen.push(picture.clone());
                }
                seen.len() == 5
            })
        }
        Step::Shows(Part(what, bytes)) => {
            let part = Image::decode(Cursor::new(bytes)).context("a picture of the matrix can't be read")?;
            machine.wait_for_picture(what, |picture| picture.find(&part).is_some())
        }
        Step::Serial(text) => machine.wait_for_serial(text).map(drop),
        Step::Keys(keys) => machine.verb("send-keys", keys)?.success().map(drop),
        Step::KeysUntil(keys, text) => loop {
            machine.verb("send-keys", keys)?.success()?;
            if machine.serial_says_within(text, AGAIN)? {
                return Ok(());
            }
        },
        // The one who keeps the pictures takes it.
        Step::Photograph => Ok(()),
        Step::Reset => machine.verb("reset", "")?.success().map(drop),
        Step::Off => machine.wait_until_off(),
    }
}

/// Runs these rows one after another, tells of each on standard error, and writes a table with a picture a row into
/// `folder`, anew after each row.
///
/// # Errors
/// A row failed (all others were still run), or the table can't be written.
pub fn run<'r>(rows: impl Iterator<Item = &'r Row>, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
    let mut table = format!(
        "{}, on {}. Seconds count from the start of the machine.\n\n\
         | row | medium | version | firmware | from | CPUs | result | seen, after s | picture |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        said("date", &["--utc", "+%F"])?,
        if Kvm::detect() == Kvm::Hardware {
            "this machine's KVM"
        } else {
            "the nested host: emulated, ten to twenty times as slow"
        },
    );
    let mut failed = Vec::new();
    for row in rows {
        eprintln!("==> {}", row.name);
        let Row { name, medium, firmware, place, cpus, .. } = row;
        let mut outcome = None;
        let ran = Host::with_shared(|host| {
            outcome = Some(row.run(host)?);
            Ok(())
        });
        let (version, result, seen, picture) = match (ran, outcome) {
            (Ok(()), Some(Outcome { seen, version, picture })) => {
                let kept = picture.map(|from| fs::copy(from, folder.join(format!("{name}.png"))));
                let picture = if matches!(kept, Some(Ok(_))) { format!("![{name}]({name}.png)") } else { "–".into() };
                let seen: Vec<_> = seen.iter().map(|(what, after)| format!("{what} {after:.0}")).collect();
                eprintln!("    {}", seen.join(" · "));
                (version, "ok", seen.join(" · ").replace('|', "\\|"), picture)
            }
            (Err(error), _) => {
                eprintln!("{name}: {error:#}");
                failed.push(*name);
                (String::new(), "**failed**", String::new(), String::new())
            }
            (Ok(()), None) => bail!("{name} did not run"),
        };
        table += &format!(
            "| {name} | {medium} | {version} | {firmware} | {place} | {cpus} | {result} | {seen} | {picture} |\n"
        );
        let path = folder.join("matrix.md");
        fs::write(&path, &table).with_context(|| format!("could not write {}", path.display()))?;
    }
    if !failed.is_empty() {
        bail!("{} of the matrix's rows failed: {}", failed.len(), failed.join(", "));
    }
    Ok(())
}

/// What a program prints.
fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("could not run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_names_of_their_own_that_are_plain_words_and_end_with_something_seen() {
        for (index, row) in TABLE.iter().enumerate() {
            assert!(TABLE[..index].iter().all(|other| other.name != row.name), "{} is there twice", row.name);
            assert!(row.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{}", row.name);
            let last = row.steps.last();
            assert!(
                last.is_some_and(|step| !matches!(step, Step::Keys(_) | Step::Photograph | Step::Reset)),
                "{}",
                row.name
            );
        }
    }

    #[test]
    fn a_kernel_s_files_are_started_by_nothing_else_and_discs_are_in_drives() {
        for row in TABLE {
            assert_eq!(row.place == Place::Files, row.firmware == Firmware::Direct, "{}", row.name);
        }
    }
}
