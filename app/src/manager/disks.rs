//! Disk images for the workers: what they are, and what is done to them as jobs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use vmm_core::backend::disk::Format;
use vmm_core::backend::disk::tools::{Info, Target};

use super::action::{DiskWork, Request, Update};
use super::model::{DiskFacts, DiskSizes, Failure, ImageFacts, Offer};
use super::service::{Shared, Work, WorkError, begin, failure, sentence};
use super::views::file_name;
use crate::jobs::disks::{self, Checked};
use crate::jobs::{Disk, First, Progress};
use crate::library::{Library, size::human};

/// What is known of images, so that those that stay as they are are read once.
#[derive(Default)]
pub struct Looked(HashMap<PathBuf, (Stamp, DiskFacts)>);

/// What changes when an image does.
type Stamp = (Option<SystemTime>, u64, u64);

impl Looked {
    /// What a machine's disk is.
    pub fn look(&mut self, path: &Path) -> DiskFacts {
        use std::os::unix::fs::MetadataExt;
        let facts = |sizes| DiskFacts { path: path.to_path_buf(), sizes };
        let meta = match std::fs::metadata(path) {
            Ok(meta) if meta.is_file() => meta,
            Ok(_) => return facts(Err("Not a file: its size is not known".into())),
            Err(error) => return facts(Err(sentence(&format!("its file can't be read: {error}")))),
        };
        let stamp = (meta.modified().ok(), meta.len(), meta.blocks());
        if let Some((before, facts)) = self.0.get(path)
            && *before == stamp
        {
            return facts.clone();
        }
        let sizes = match disks::info(path) {
            Ok(info) => sizes(&info).ok_or_else(|| "It is no disk image.".to_string()),
            Err(error) => Err(sentence(&vmm_core::base::explain(&error))),
        };
        let facts = facts(sizes);
        self.0.insert(path.to_path_buf(), (stamp, facts.clone()));
        facts
    }

    /// Forgets all but these.
    pub fn keep<'a>(&mut self, paths: impl Iterator<Item = &'a PathBuf>) {
        let paths: std::collections::HashSet<&PathBuf> = paths.collect();
        self.0.retain(|path, _| paths.contains(path));
    }
}

fn sizes(info: &Info) -> Option<DiskSizes> {
    let top = info.layers.first()?;
    Some(DiskSizes { format: top.format, guest: top.virtual_size, host: top.host_size, shared: info.shared_size })
}

/// What an image is, for the dialog.
pub(super) fn look_at(path: &Path) -> Result<ImageFacts, Failure> {
    let what = || format!("{} is no disk image that can be read", file_name(path));
    let info = disks::info(path).map_err(|error| failure(what(), &error, None))?;
    let none = || Failure { what: what(), cause: "There is nothing in it.".into(), next: None, offer: None };
    let sizes = sizes(&info).ok_or_else(none)?;
    let is_usable = matches!(sizes.format, "raw" | "qcow2");
    let below = info.layers.into_iter().skip(1).map(|layer| layer.path).collect();
    let problems = info.problems.iter().map(|problem| sentence(problem)).collect();
    Ok(ImageFacts { sizes, is_usable, below, problems })
}

/// What an image is called in a sentence.
fn named(disk: &Disk) -> String {
    match disk {
        Disk::Of { machine, disk } => format!("disk {} of {machine}", disk + 1),
        Disk::File(path) => file_name(path),
    }
}

/// A job that does something to an image, and can be cancelled.
fn work(
    disk: &Disk,
    what: String,
    failed: String,
    work: impl FnOnce(&Library, Progress<'_>) -> Result<(), WorkError> + Send + 'static,
) -> Work {
    let machine = match disk {
        Disk::Of { machine, .. } => machine.clone(),
        Disk::File(path) => path.display().to_string(),
    };
    Work { machine, what, done: None, failed, cancelled: None, can_cancel: true, anyway: None, work: Box::new(work) }
}

/// Begins what is to be done to an image.
pub(super) fn perform(shared: &Arc<Shared>, disk: Disk, wanted: DiskWork) {
    let name = named(&disk);
    let tell = shared.tell.clone();
    let of = disk.clone();
    let work = match wanted {
        DiskWork::Grow(size, first) => {
            let again = Request::Disk(disk.clone(), DiskWork::Grow(size, First::Lose));
            let failed = format!("{} was not grown", capital(&name));
            let grow = work(&of, format!("Growing {name}"), failed, move |library, _| {
                let now = disks::grow(Some(library), &disk, size, first)?;
                tell.say(Update::Notice(format!("{} has {} now", capital(&named(&disk)), human(now))));
                Ok(())
            });
            let anyway = Some(Offer { label: "Grow it all the same", request: again });
            Work { can_cancel: false, anyway, ..grow }
        }
        DiskWork::Compact => {
            let failed = format!("{} was not compacted", capital(&name));
            work(&of, format!("Compacting {name}"), failed, move |library, progress| {
                let (before, after) = disks::compact(Some(library), &disk, progress)?;
                tell.say(Update::Notice(disks::compacted(&capital(&named(&disk)), before, after)));
                Ok(())
            })
        }
        DiskWork::Check | DiskWork::Repair => {
            let repair = wanted == DiskWork::Repair;
            let (what, failed) = match repair {
                false => (format!("Checking {name}"), format!("{} could not be checked", capital(&name))),
                true => (format!("Repairing {name}"), format!("{} could not be repaired", capital(&name))),
            };
            work(&of, what, failed, move |library, progress| {
                let checked = disks::check(Some(library), &disk, repair, progress)?;
                tell.say(found(&disk, &checked, repair));
                Ok(())
            })
        }
    };
    begin(shared, work);
}

/// Begins to copy an image to a new file.
pub(super) fn convert(shared: &Arc<Shared>, from: PathBuf, to: PathBuf, format: Format) {
    let (disk, name) = (Disk::File(from.clone()), file_name(&from));
    let done = Some(format!("Made {}", file_name(&to)));
    let copy = work(&disk, format!("Converting {name}"), format!("{name} was not converted"), move |_, progress| {
        Ok(disks::convert(&from, &to, Target { format, cluster: None }, progress)?)
    });
    begin(shared, Work { done, ..copy });
}

/// Begins to have a disk of a machine in another format.
pub(super) fn switch(shared: &Arc<Shared>, machine: String, index: usize, format: Format) {
    let disk = Disk::Of { machine: machine.clone(), disk: index };
    let name = named(&disk);
    let done = Some(format!("{} is a {} image now", capital(&name), format.name()));
    let failed = format!("{} was not converted", capital(&name));
    let other = work(&disk, format!("Converting {name} to {}", format.name()), failed, move |library, progress| {
        Ok(disks::switch(library, &machine, index, format, progress).map(drop)?)
    });
    begin(shared, Work { done, ..other });
}

/// Begins to give a machine one more disk.
pub(super) fn add(shared: &Arc<Shared>, machine: String, size: u64) {
    let tell = shared.tell.clone();
    let added = Work {
        machine: machine.clone(),
        what: format!("Adding a disk to {machine}"),
        done: None,
        failed: format!("{machine} got no disk"),
        cancelled: None,
        can_cancel: false,
        anyway: None,
        work: Box::new(move |library, _| {
            let (machine, disk) = disks::add(library, &machine, size, None)?;
            let name = capital(&named(&Disk::Of { machine: machine.name, disk }));
            tell.say(Update::Notice(format!("{name} is there, with {}", human(size))));
            Ok(())
        }),
    };
    begin(shared, added);
}

/// What a check found, in words, with what can be done about it.
fn found(disk: &Disk, checked: &[Checked], repaired: bool) -> Update {
    let bad: Vec<&Checked> = checked.iter().filter(|one| !one.is_good()).collect();
    let name = capital(&named(disk));
    if bad.is_empty() {
        let words =
            if repaired { "is repaired: nothing is wrong with it" } else { "is whole: nothing is wrong with it" };
        return Update::Notice(format!("{name} {words}"));
    }
    let words = |one: &&Checked| match checked {
        [_] => one.words(),
        _ => format!("{}: {}", file_name(&one.path), one.words()),
    };
    let can_be_repaired = !repaired && bad.iter().any(|one| one.can_be_repaired());
    let repair = || Offer { label: "Repair", request: Request::Disk(disk.clone(), DiskWork::Repair) };
    Update::Failed(Failure {
        what: format!("{name} is not as it should be"),
        cause: bad.iter().map(words).collect::<Vec<_>>().join("\n"),
        next: None,
        offer: can_be_repaired.then(repair).map(Box::new),
    })
}

/// With a capital at its start; a file keeps its name.
fn capital(name: &str) -> String {
    match name.strip_prefix("disk ") {
        Some(rest) => format!("Disk {rest}"),
        None => name.into(),
    }
}
