//! What a library of machines and a folder of images hold, for the one who compares: every state that a machine can be in or
//! go back to, byte by byte, and what should not be there.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vmm_core::backend::disk::{self, Buffers, Disk, Format, OpenOptions, Request, Scratch};
use vmm_core::checkpoint::{Checkpoint, Store};

use crate::qemu;

/// What there is.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct State {
    /// What matters to a person: what it is about, and what it holds.
    pub facts: BTreeMap<String, String>,
    /// The files that the RAM of each point is in.
    pub layers: BTreeMap<String, String>,
    /// Images with space that is counted and not used: `qemu-img check` says so, or they were not closed cleanly.
    pub leaks: BTreeSet<String>,
    /// Files that nobody needs.
    pub junk: BTreeSet<String>,
    /// How many images machines have.
    pub images: usize,
}

/// Looks at a folder: at the machines in it, at those in its trash, and at the images beside them.
///
/// # Errors
/// Something is damaged or can't be understood, which nothing may ever be.
pub fn look(folder: &Path) -> Result<State> {
    let mut state = State::default();
    for entry in names(folder)? {
        let path = folder.join(&entry);
        match entry.as_str() {
            ".trash" => {
                for trashed in names(&path)? {
                    let folder = path.join(&trashed);
                    if trashed.starts_with('.') || !folder.join("machine.toml").exists() {
                        state.junk.insert(format!(".trash/{trashed}"));
                        continue;
                    }
                    machine(&folder, "trash: ", &mut state)?;
                }
            }
            ".lock" => {}
            _ if entry.starts_with('.') || entry.ends_with(".part") => drop(state.junk.insert(entry)),
            _ if path.is_dir() => machine(&path, "", &mut state)?,
            _ => {
                check(&path, &entry, &mut state)?;
                state.facts.insert(format!("image {entry}"), contents(&path)?);
            }
        }
    }
    Ok(state)
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// One machine: what it is, and each point that it can go back to.
fn machine(folder: &Path, prefix: &str, state: &mut State) -> Result<()> {
    let text = fs::read_to_string(folder.join("machine.toml"))
        .with_context(|| format!("there is no machine in {}", folder.display()))?;
    let now: toml::Table = text.parse().context("machine.toml is damaged")?;
    let name = format!("{prefix}{}", now.get("name").and_then(toml::Value::as_str).context("a machine has no name")?);
    let mut needed = BTreeSet::new();
    disks(folder, &now, &format!("{name}: "), &mut needed, &mut state.facts)?;
    let written = needed.clone();
    let text = |field: &str| now.get(field).and_then(toml::Value::as_str);
    if text("resume").is_some() {
        state.facts.insert(format!("{name}: goes on"), "from a snapshot".into());
    }
    let timeline = now.get("timeline").map(ToString::to_string);
    if let Some(timeline) = &timeline {
        state.facts.insert(format!("{name}: keeps a timeline"), timeline.clone());
    }
    // It is on its way back to a snapshot: the rest follows before anything else is done.
    let restoring = text("restoring").map(|id| folder.join("checkpoints").join(id));
    if restoring.is_some() {
        state.junk.insert(format!("{name}: what is left of going back"));
    }
    for (file, path) in loose(folder, restoring.as_deref())? {
        state.facts.insert(format!("{name}: {file}"), crc(&fs::read(path)?));
    }
    let mut kept = BTreeSet::new();
    let left = restoring.map(|_| if timeline.is_some() { "timeline" } else { "" });
    checkpoints(folder, &name, left, &mut kept, state)?;
    // What goes on in the image of a snapshot changes the snapshot. One that was suspended goes on with its own.
    let suspended = state.facts.keys().any(|fact| fact.starts_with(&format!("{name}: suspended")));
    ensure!(suspended || written.is_disjoint(&kept), "{name} writes to what a snapshot has: {written:?}");
    needed.append(&mut kept);
    // What is there, and what of it is needed.
    for file in names(folder)? {
        if file.starts_with('.') && !file.starts_with(".machine.toml.") || file == "unsaved" {
            state.junk.insert(format!("{name}: {file}"));
        }
    }
    let images = folder.join("disks");
    let mut open: Vec<String> = needed.into_iter().collect();
    let stood_on =
        |image: &String, others: &BTreeMap<String, Option<String>>| others.values().flatten().any(|o| o == image);
    let mut all = BTreeMap::new();
    let mut reached = BTreeSet::new();
    while let Some(image) = open.pop() {
        let path = images.join(&image);
        let below = disk::facts(&path).with_context(|| format!("an image is damaged: {}", path.display()))?.backing;
        check(&path, &format!("{name}: {image}"), state)?;
        let below = below.and_then(|below| Some(below.file_name()?.to_string_lossy().into_owned()));
        if reached.insert(image.clone()) {
            all.insert(image, below.clone());
            open.extend(below);
        }
    }
    if let Some(image) = written.iter().find(|image| stood_on(image, &all)) {
        bail!("{name} writes to {image}, which another stands on");
    }
    for image in &written {
        ensure!(fs::metadata(images.join(image))?.nlink() == 1, "{name} writes to {image}, which another machine has");
    }
    state.images += names(&images)?.len();
    let left = names(&images)?.into_iter().filter(|image| !reached.contains(image));
    state.junk.extend(left.map(|image| format!("{name}: disks/{image}")));
    Ok(())
}

/// The files beside the disks that a snapshot of a machine that is off keeps, and where they are: those of the snapshot that it
/// is going back to, if it is one of a machine that was off.
fn loose(folder: &Path, restoring: Option<&Path>) -> Result<Vec<(String, PathBuf)>> {
    let off = restoring.filter(|from| fs::metadata(from.join("state")).is_ok_and(|state| state.len() == 0));
    let mut all = Vec::new();
    if let Some(from) = off {
        for file in names(from)? {
            if file == "nvram.fd" || file.starts_with("tpm-") {
                all.push((file.replacen("tpm-", "tpm/", 1), from.join(file)));
            }
        }
        return Ok(all);
    }
    if folder.join("nvram.fd").exists() {
        all.push(("nvram.fd".into(), folder.join("nvram.fd")));
    }
    let tpm = folder.join("tpm");
    if tpm.is_dir() {
        all.extend(names(&tpm)?.into_iter().map(|file| (format!("tpm/{file}"), tpm.join(file))));
    }
    Ok(all)
}

fn disks(
    folder: &Path,
    file: &toml::Table,
    what: &str,
    needed: &mut BTreeSet<String>,
    facts: &mut BTreeMap<String, String>,
) -> Result<()> {
    let disks = file.get("disks").and_then(toml::Value::as_array).into_iter().flatten();
    for (number, one) in disks.enumerate() {
        let path = one.get("path").and_then(toml::Value::as_str).context("a disk has no path")?;
        facts.insert(format!("{what}disk {number}"), contents(&folder.join(path))?);
        needed.insert(path.strip_prefix("disks/").context("a disk is elsewhere")?.into());
    }
    Ok(())
}

/// Everything in the folder of checkpoints. Of a machine that is on its way back to a snapshot, `left` is what becomes of what it
/// was suspended in: a point of another kind, or nothing.
fn checkpoints(
    folder: &Path,
    name: &str,
    left: Option<&str>,
    needed: &mut BTreeSet<String>,
    state: &mut State,
) -> Result<()> {
    let place = folder.join("checkpoints");
    if !place.exists() {
        return Ok(());
    }
    let store = Store::new(&place);
    let ids: BTreeSet<String> = store.list()?.into_iter().collect();
    let mut layers = BTreeSet::new();
    for id in &ids {
        let path = store.path(id);
        let about: Value =
            serde_json::from_slice(&fs::read(path.join("about.json"))?).context("about.json is damaged")?;
        let text = |field: &str| about.get(field).and_then(Value::as_str).unwrap_or_default().to_string();
        let kind = match (text("kind").as_str(), left) {
            ("suspended", Some("")) => continue,
            ("suspended", Some(other)) => other.to_string(),
            (kind, _) => kind.to_string(),
        };
        let mut found = BTreeMap::new();
        // That it can be read is the claim; its own checksums are checked there.
        let loaded = store.load(id).with_context(|| format!("{name}: {kind} {:?} can't be loaded", text("name")))?;
        let sections: Vec<u32> = loaded.sections.iter().map(|section| crc32fast::hash(&section.bytes)).collect();
        found.insert(String::new(), format!("{} of RAM, state {:x}", loaded.size, crc32fast::hash(&words(&sections))));
        if !text("note").is_empty() {
            found.insert(": note".into(), text("note"));
        }
        let manifest = store.manifest(id)?;
        for layer in &manifest.memory.layers {
            layers.insert(layer.clone());
        }
        found.insert(": memory".into(), memory(&store, &loaded)?);
        let then: toml::Table = text("machine").parse().context("about.json has no machine")?;
        disks(folder, &then, ": ", needed, &mut found)?;
        for file in names(&path)?.iter().filter(|file| file.starts_with("tpm-") || *file == "nvram.fd") {
            found.insert(format!(": {file}"), crc(&fs::read(path.join(file))?));
        }
        // What has no name is told by what it holds: two that hold the same are one.
        let what = match kind.as_str() {
            "timeline" => format!("{name}: timeline {:08x}", crc32fast::hash(format!("{found:?}").as_bytes())),
            kind => format!("{name}: {kind} {:?}", text("name")),
        };
        let files = manifest.memory.layers.iter().map(|layer| sparse(&store.path(layer).join("memory")));
        let files = crc32fast::hash(&words(&files.collect::<Result<Vec<_>>>()?));
        state.layers.insert(format!("{what}: memory"), format!("{files:x}"));
        ensure!(what.contains(": timeline ") || !state.facts.contains_key(&what), "there are two of {what}");
        state.facts.extend(found.into_iter().map(|(part, value)| (format!("{what}{part}"), value)));
    }
    for entry in names(&place)? {
        if !ids.contains(&entry) && !layers.contains(&entry) {
            state.junk.insert(format!("{name}: checkpoints/{entry}"));
        }
        for file in names(&place.join(&entry))?.iter().filter(|file| file.starts_with('.') || file.ends_with(".part")) {
            state.junk.insert(format!("{name}: checkpoints/{entry}/{file}"));
        }
    }
    Ok(())
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn crc(bytes: &[u8]) -> String {
    format!("{} bytes, {:08x}", bytes.len(), crc32fast::hash(bytes))
}

/// A checksum of what a checkpoint's RAM holds, wherever it is: of the pages that are not zeroes, and where they belong.
fn memory(store: &Store, loaded: &Checkpoint) -> Result<String> {
    let (mut sum, mut page, mut files) = (crc32fast::Hasher::new(), vec![0; 4096], BTreeMap::new());
    for (run, layer) in loaded.pages.iter() {
        let name = layer.name().context("a layer has no name")?;
        let path = store.path(name).join("memory");
        let file = match files.entry(path.clone()) {
            Entry::Occupied(file) => file.into_mut(),
            Entry::Vacant(none) => none.insert(fs::File::open(&path)?),
        };
        for number in run.first..run.first + run.count {
            file.read_exact_at(&mut page, number * 4096)
                .with_context(|| format!("could not read {}", path.display()))?;
            if page.iter().any(|byte| *byte != 0) {
                sum.update(&number.to_le_bytes());
                sum.update(&page);
            }
        }
    }
    Ok(format!("{:x}", sum.finalize()))
}

/// A checksum of a sparse file's data, whatever holes it has.
fn sparse(path: &Path) -> Result<u32> {
    use std::os::fd::AsRawFd;
    let file = fs::File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    let (length, mut at, mut sum) = (file.metadata()?.len(), 0, crc32fast::Hasher::new());
    let mut block = vec![0; 4096];
    while at < length {
        // SAFETY: only moves the position of an open file.
        let data = unsafe { libc::lseek(file.as_raw_fd(), at as i64, libc::SEEK_DATA) };
        let Ok(data) = u64::try_from(data) else { break };
        at = data / 4096 * 4096;
        let count = file.read_at(&mut block, at)?;
        if block[..count].iter().any(|byte| *byte != 0) {
            sum.update(&at.to_le_bytes());
            sum.update(&block[..count]);
        }
        at += 4096;
    }
    Ok(sum.finalize())
}

/// What the guest finds on a disk.
fn contents(path: &Path) -> Result<String> {
    let mut disk = disk::open(path, OpenOptions { readonly: true, direct: false })
        .with_context(|| format!("could not open {}", path.display()))?;
    let size = disk.geometry().size;
    let len = usize::try_from(size)?;
    let mut scratch = Arc::new(Scratch::new(len));
    disk.submit(0, Request::Read { offset: 0, buffers: Buffers::own(&scratch, len) });
    disk.drain();
    let done = disk.completed().context("a disk does not answer")?;
    done.result.with_context(|| format!("could not read {}", path.display()))?;
    drop(disk);
    let bytes = Arc::get_mut(&mut scratch).context("a disk keeps its buffers")?.bytes();
    Ok(format!("{size} bytes, {:08x}", crc32fast::hash(&bytes[..len])))
}

/// What was found of images with certain bytes: most are looked at again and again.
static CHECKED: Mutex<BTreeMap<(u32, usize, PathBuf), bool>> = Mutex::new(BTreeMap::new());

/// Asks another program whether an image is whole.
fn check(path: &Path, what: &str, state: &mut State) -> Result<()> {
    if disk::detect(path)? != Format::Qcow2 {
        return Ok(());
    }
    let bytes = fs::read(path)?;
    let key = (crc32fast::hash(&bytes), bytes.len(), path.file_name().map(PathBuf::from).unwrap_or_default());
    let known = CHECKED.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
    let leaks = match known {
        Some(leaks) => leaks,
        None => {
            let leaks = qemu::check(path).with_context(|| format!("{what} is not whole"))?;
            CHECKED.lock().unwrap_or_else(PoisonError::into_inner).insert(key, leaks);
            leaks
        }
    };
    if leaks {
        state.leaks.insert(what.into());
    }
    Ok(())
}
