//! A machine's folder of checkpoints. Whoever writes to it holds the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::manifest::{FORMAT, Format, Manifest, MemoryTable, SectionEntry};
use super::{Checkpoint, CheckpointError, Moment};
use crate::base::{Fate, Layer, OldPages, PageRun, PageTable, Progress, Section, copy_sparse};
use crate::config::VmConfig;

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const PAGES: &str = "pages";
/// A folder that is being written.
const PART: &str = ".part";
/// Bytes of a record in `pages`: first page, u64; count, u32; layer, u32; little-endian.
const RECORD: usize = 16;
/// The largest of each file that is read.
const MAX_MANIFEST: u64 = 16 << 20;
const MAX_STATE: u64 = 4 << 30;
const PAGE: u64 = 4096;
/// What is copied at once, bytes.
const BLOCK: usize = 1 << 20;

/// See the module.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

fn host(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CheckpointError::Full { path },
        _ => CheckpointError::Host { action, path, source },
    }
}

fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(host("write to", folder))
}

/// How a copied checkpoint has its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// The same files, which never change, under another name (hard links).
    Linked,
    /// Files of its own.
    Copied,
}

/// Names of checkpoints are names of files, made by the program: nothing else is looked at.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

impl Store {
    /// The checkpoints in this folder, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Store {
        Store { folder: folder.into() }
    }

    /// A checkpoint's folder.
    pub fn path(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    /// The names of all checkpoints, in no order.
    pub fn list(&self) -> Result<Vec<String>, CheckpointError> {
        let all = self.folders()?;
        Ok(all.into_iter().filter(|name| is_name(name) && self.path(name).join(MANIFEST).is_file()).collect())
    }

    fn folders(&self) -> Result<Vec<String>, CheckpointError> {
        match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(host("read", &self.folder)(error)),
            Ok(entries) => Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()),
        }
    }

    /// What all of it takes on the host, bytes.
    pub fn size(&self) -> Result<u64, CheckpointError> {
        let folders = self.folders()?;
        let files = folders.iter().filter_map(|name| fs::read_dir(self.path(name)).ok()).flatten().flatten();
        Ok(files.filter_map(|file| file.metadata().ok()).map(|meta| meta.blocks() * 512).sum())
    }

    /// Whether there is a checkpoint of this name.
    pub fn has(&self, id: &str) -> bool {
        is_name(id) && self.path(id).join(MANIFEST).is_file()
    }

    /// Whether there are pages of this name.
    pub fn has_layer(&self, name: &str) -> bool {
        is_name(name) && self.path(name).join(MEMORY).is_file()
    }

    /// The names of all pages that there are.
    pub fn layers(&self) -> Result<Vec<String>, CheckpointError> {
        Ok(self.folders()?.into_iter().filter(|name| self.has_layer(name)).collect())
    }

    /// What a checkpoint says of itself.
    pub fn manifest(&self, id: &str) -> Result<Manifest, CheckpointError> {
        if !self.has(id) {
            return Err(CheckpointError::Missing { id: id.into() });
        }
        let damaged = |why: String| CheckpointError::Damaged { id: id.into(), why };
        let text = self.read(id, MANIFEST, MAX_MANIFEST)?;
        let Format { format } =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("its manifest: {error}")))?;
        if format > FORMAT {
            return Err(CheckpointError::Newer { id: id.into(), found: format, known: FORMAT });
        }
        serde_json::from_slice(&text).map_err(|error| damaged(format!("its manifest: {error}")))
    }

    fn read(&self, id: &str, name: &str, limit: u64) -> Result<Vec<u8>, CheckpointError> {
        let path = self.path(id).join(name);
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(host("open", &path))?;
        file.take(limit + 1).read_to_end(&mut bytes).map_err(host("read", &path))?;
        if bytes.len() as u64 > limit {
            return Err(CheckpointError::Damaged { id: id.into(), why: format!("its {name} is too large") });
        }
        Ok(bytes)
    }

    /// Reads a checkpoint; RAM is only opened.
    pub fn load(&self, id: &str) -> Result<Checkpoint, CheckpointError> {
        let manifest = self.manifest(id)?;
        let damaged = |why: &str| CheckpointError::Damaged { id: id.into(), why: why.into() };
        let state = self.read(id, STATE, MAX_STATE)?;
        let mut rest: &[u8] = &state;
        let mut sections = Vec::with_capacity(manifest.sections.len());
        for entry in &manifest.sections {
            let bytes = usize::try_from(entry.length).ok().and_then(|length| rest.split_at_checked(length));
            let (bytes, after) = bytes.ok_or_else(|| damaged("its state is too short"))?;
            if crc32fast::hash(bytes) != entry.checksum {
                return Err(damaged(&format!("the state of {} is not what was written", entry.name)));
            }
            rest = after;
            sections.push(Section { name: entry.name.clone(), version: entry.version, bytes: bytes.to_vec() });
        }
        let pages = self.pages(id, &manifest.memory)?;
        Ok(Checkpoint { config: manifest.config, sections, size: manifest.memory.size, pages })
    }

    /// Where a checkpoint's pages are: each run with the number of its layer.
    fn runs(&self, id: &str, memory: &MemoryTable) -> Result<Vec<(PageRun, usize)>, CheckpointError> {
        let damaged = |why: &str| CheckpointError::Damaged { id: id.into(), why: why.into() };
        let total = memory.size / PAGE;
        let limit = total.min(memory.runs).saturating_mul(RECORD as u64);
        let records = self.read(id, PAGES, limit)?;
        if crc32fast::hash(&records) != memory.checksum || records.len() as u64 != limit {
            return Err(damaged("its table of pages is not what was written"));
        }
        let run = |record: &[u8]| {
            let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
            let first = u64::from(word(0)) | u64::from(word(4)) << 32;
            let (count, layer) = (u64::from(word(8)), word(12) as usize);
            let fits = first.checked_add(count).is_some_and(|end| end <= total) && layer < memory.layers.len();
            fits.then_some((PageRun { first, count }, layer))
        };
        let runs = records.chunks_exact(RECORD).map(run).collect::<Option<_>>();
        runs.ok_or_else(|| damaged("its pages are outside its memory"))
    }

    /// How much RAM of two checkpoints is not in the same place: what differs between them, and what was written again as it
    /// was, bytes.
    pub fn difference(&self, first: &str, second: &str) -> Result<u64, CheckpointError> {
        let places = |id: &str| {
            let memory = self.manifest(id)?.memory;
            let runs = self.runs(id, &memory)?;
            let place = |(run, layer): (PageRun, usize)| (run.first, run.count, memory.layers[layer].clone());
            Ok::<_, CheckpointError>((runs.into_iter().map(place).collect::<Vec<_>>(), memory.size / PAGE))
        };
        let ((first, size), (second, other_size)) = (places(first)?, places(second)?);
        // The places where a run of either begins or ends cut RAM into pieces, each of one layer or none in both.
        let ends = |runs: &[(u64, u64, String)]| runs.iter().flat_map(|run| [run.0, run.0 + run.1]).collect::<Vec<_>>();
        let mut cuts: Vec<u64> = [vec![0, size.max(other_size)], ends(&first), ends(&second)].concat();
        cuts.sort_unstable();
        cuts.dedup();
        let mut at = [first.into_iter().peekable(), second.into_iter().peekable()];
        let mut pages = 0;
        for piece in cuts.windows(2) {
            let [a, b] = at.each_mut().map(|runs| {
                while runs.next_if(|run| run.0 + run.1 <= piece[0]).is_some() {}
                runs.peek().filter(|run| run.0 <= piece[0]).map(|run| run.2.clone())
            });
            if a != b {
                pages += piece[1] - piece[0];
            }
        }
        Ok(pages * PAGE)
    }

    /// A checkpoint's pages, opened.
    fn pages(&self, id: &str, memory: &MemoryTable) -> Result<PageTable, CheckpointError> {
        let damaged = |why: &str| CheckpointError::Damaged { id: id.into(), why: why.into() };
        let runs = self.runs(id, memory)?;
        let mut layers = Vec::new();
        for name in &memory.layers {
            if !self.has_layer(name) {
                return Err(damaged(&format!("the pages of {name} are missing")));
            }
            let path = self.path(name).join(MEMORY);
            let file = File::open(&path).map_err(host("open", &path))?;
            let length = file.metadata().map_err(host("read", &path))?.len();
            layers.push((Layer::named(file, name.clone()), length / PAGE));
        }
        let mut table = PageTable::default();
        for (run, layer) in runs {
            let (layer, length) = layers.get(layer).ok_or_else(|| damaged("its pages are in no layer"))?;
            if run.first + run.count > *length {
                return Err(damaged("its pages are outside its memory"));
            }
            table.set(run, layer);
        }
        Ok(table)
    }

    /// The pages of a checkpoint, to compare with; `None` where that has other RAM.
    pub fn old_pages(&self, id: &str, size: u64) -> Result<Option<(OldPages, PageTable)>, CheckpointError> {
        let manifest = self.manifest(id)?;
        if manifest.memory.size != size {
            return Ok(None);
        }
        let table = self.pages(id, &manifest.memory)?;
        let pages = OldPages::new(size, &table).map_err(host("map", &self.path(id)))?;
        Ok(Some((pages, table)))
    }

    /// Begins a checkpoint of this name, which is none of another's.
    pub fn begin(&self, id: &str) -> Result<Draft, CheckpointError> {
        let part = self.folder.join(format!("{id}{PART}"));
        debug_assert!(is_name(id));
        DirBuilder::new().recursive(true).mode(0o700).create(&part).map_err(host("create", &part))?;
        let path = part.join(MEMORY);
        let memory = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path);
        let memory = memory.inspect_err(|_| drop(fs::remove_dir(&part))).map_err(host("create", &path))?;
        Ok(Draft { store: self.clone(), id: id.into(), part, memory, committed: false })
    }

    /// Copies a checkpoint, and all pages that it needs, to another store, with these files in the place of those of the same
    /// name.
    pub fn copy(&self, id: &str, to: &Store, how: Sharing, files: &[(&str, &[u8])]) -> Result<(), CheckpointError> {
        let manifest = self.manifest(id)?;
        let draft = to.begin(id)?;
        let from = self.path(id);
        for entry in fs::read_dir(&from).map_err(host("read", &from))?.flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            if name != MANIFEST && name != MEMORY && !files.iter().any(|(other, _)| *other == name) {
                draft.add(&name, &fs::read(entry.path()).map_err(host("read", &entry.path()))?)?;
            }
        }
        for (name, bytes) in files {
            draft.add(name, bytes)?;
        }
        for layer in &manifest.memory.layers {
            let from = self.path(layer).join(MEMORY);
            let folder = if layer == id { draft.part.clone() } else { to.path(layer) };
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(host("create", &folder))?;
            let place = folder.join(MEMORY);
            // The draft begins with an empty one.
            let _ = fs::remove_file(&place);
            match how {
                Sharing::Linked => fs::hard_link(&from, &place).map_err(host("share", &from))?,
                Sharing::Copied => copy_sparse(&from, &place).map_err(host("copy", &from))?,
            }
            sync_folder(&folder)?;
        }
        draft.add(MANIFEST, &fs::read(from.join(MANIFEST)).map_err(host("read", &from))?)?;
        draft.commit()
    }

    /// Removes a checkpoint. Its pages stay as long as others need them.
    pub fn remove(&self, id: &str) -> Result<(), CheckpointError> {
        if !self.has(id) {
            return Err(CheckpointError::Missing { id: id.into() });
        }
        let manifest = self.path(id).join(MANIFEST);
        fs::remove_file(&manifest).map_err(host("remove", &manifest))?;
        sync_folder(&self.path(id))?;
        self.collect()
    }

    /// Gives space back that pages take which nobody needs: of the layers whose checkpoints were removed, each of which less
    /// than half is needed is copied under another name, with what is needed. Interrupted anywhere, every checkpoint is whole.
    ///
    /// Whoever has mapped a layer keeps it.
    pub fn compact(&self, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<(), CheckpointError> {
        let mut needed: BTreeMap<String, Vec<PageRun>> = BTreeMap::new();
        let mut manifests = Vec::new();
        for id in self.list()? {
            let manifest = match self.manifest(&id) {
                // Nobody knows what it needs.
                Err(CheckpointError::Newer { .. } | CheckpointError::Damaged { .. }) => return Ok(()),
                manifest => manifest?,
            };
            for (run, layer) in self.runs(&id, &manifest.memory)? {
                needed.entry(manifest.memory.layers[layer].clone()).or_default().push(run);
            }
            manifests.push((id, manifest));
        }
        let removed = needed.into_iter().filter(|(name, _)| !self.has(name));
        for (name, runs) in removed.collect::<Vec<_>>() {
            let runs = merged(runs);
            let path = self.path(&name).join(MEMORY);
            let bytes = runs.iter().map(|run| run.count * PAGE).sum::<u64>();
            let used = fs::metadata(&path).map_err(host("read", &path))?.blocks() * 512;
            if bytes * 2 > used {
                continue;
            }
            let new = self.copy_layer(&name, &runs, &mut |done| progress(done, bytes))?;
            for (id, manifest) in &mut manifests {
                if let Some(layer) = manifest.memory.layers.iter_mut().find(|layer| **layer == name) {
                    layer.clone_from(&new);
                    self.rewrite(id, manifest)?;
                }
            }
        }
        self.collect()
    }

    /// Copies these pages of a layer to a new one, and says what that is called.
    fn copy_layer(
        &self,
        name: &str,
        runs: &[PageRun],
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<String, CheckpointError> {
        let stem = name.split('-').next().unwrap_or(name);
        let free = (1..).map(|number| format!("{stem}-{number}")).find(|name| !self.path(name).exists());
        let new = free.unwrap_or_default();
        let (from, folder) = (self.path(name).join(MEMORY), self.path(&new));
        let source = File::open(&from).map_err(host("open", &from))?;
        DirBuilder::new().mode(0o700).create(&folder).map_err(host("create", &folder))?;
        let path = folder.join(MEMORY);
        let target = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let target = target.map_err(host("create", &path))?;
        let length = source.metadata().map_err(host("read", &from))?.len();
        target.set_len(length).map_err(host("write", &path))?;
        let (mut block, mut done) = (vec![0; BLOCK], 0);
        for run in runs {
            let (mut at, end) = (run.first * PAGE, (run.first + run.count) * PAGE);
            while at < end {
                let part = &mut block[..(end - at).min(BLOCK as u64) as usize];
                source.read_exact_at(part, at).map_err(host("read", &from))?;
                target.write_all_at(part, at).map_err(host("write", &path))?;
                at += part.len() as u64;
                done += part.len() as u64;
                if !progress(done) {
                    // The next collection removes what is there of it.
                    return Err(CheckpointError::Cancelled);
                }
            }
        }
        target.sync_data().map_err(host("write", &path))?;
        sync_folder(&folder)?;
        sync_folder(&self.folder)?;
        Ok(new)
    }

    /// Replaces what a checkpoint says of itself.
    fn rewrite(&self, id: &str, manifest: &Manifest) -> Result<(), CheckpointError> {
        let (path, new) = (self.path(id).join(MANIFEST), self.path(id).join(format!("{MANIFEST}{PART}")));
        let text = serde_json::to_vec_pretty(manifest).map_err(io::Error::other).map_err(host("write", &path))?;
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new);
        let written = file.and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_data()));
        written.and_then(|()| fs::rename(&new, &path)).map_err(host("write", &path))?;
        sync_folder(&self.path(id))
    }

    /// Removes what no checkpoint needs: what was removed, and what was not finished.
    pub fn collect(&self) -> Result<(), CheckpointError> {
        let mut needed = BTreeSet::new();
        for id in self.list()? {
            match self.manifest(&id) {
                Ok(manifest) => needed.extend(manifest.memory.layers),
                // Nobody knows what it needs: nothing is removed.
                Err(CheckpointError::Newer { .. } | CheckpointError::Damaged { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        for name in self.folders()? {
            let folder = self.path(&name);
            let unfinished = name.strip_suffix(PART).is_some_and(is_name);
            if !unfinished && (!is_name(&name) || self.has(&name)) {
                continue;
            }
            if unfinished || !needed.contains(&name) {
                fs::remove_dir_all(&folder).map_err(host("remove", &folder))?;
                continue;
            }
            let entries = fs::read_dir(&folder).map_err(host("read", &folder))?;
            for entry in entries.flatten().filter(|entry| entry.file_name() != MEMORY) {
                fs::remove_file(entry.path()).map_err(host("remove", &entry.path()))?;
            }
        }
        Ok(())
    }
}

/// Runs, sorted, each page once.
fn merged(mut runs: Vec<PageRun>) -> Vec<PageRun> {
    runs.sort_by_key(|run| run.first);
    let mut merged: Vec<PageRun> = Vec::with_capacity(runs.len());
    for run in runs {
        let end = run.first + run.count;
        match merged.last_mut() {
            Some(last) if run.first <= last.first + last.count => last.count = last.count.max(end - last.first),
            _ => merged.push(run),
        }
    }
    merged
}

/// A checkpoint that is being written. Dropped before [`Draft::write`] is done, nothing is left of it.
pub struct Draft {
    store: Store,
    id: String,
    part: PathBuf,
    memory: File,
    committed: bool,
}

impl Draft {
    /// Where pages are written.
    pub fn memory(&self) -> Result<File, CheckpointError> {
        self.memory.try_clone().map_err(host("open", &self.part.join(MEMORY)))
    }

    /// Adds a file of somebody else's, like a picture. Not one of the names that [this module](super) uses.
    pub fn add(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let path = self.part.join(name);
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_data()));
        written.map_err(host("write", &path))
    }

    /// Writes a checkpoint of a machine that is off: it has its files and no state.
    pub fn write_off(self, config: &VmConfig) -> Result<(), CheckpointError> {
        self.finish(&[], 0, &PageTable::default(), config)
    }

    /// Copies RAM, writes the rest, makes all durable, and gives it its name. `progress` says whether to go on.
    pub fn write(
        self,
        moment: Moment,
        config: &VmConfig,
        mut progress: impl FnMut(Progress) -> bool,
    ) -> Result<(), CheckpointError> {
        let Moment { sections, size, copy, base, old, layer: running } = moment;
        let path = self.part.join(MEMORY);
        self.memory.set_len(size).map_err(host("write", &path))?;
        let layer = Layer::named(self.memory()?, self.id.clone());
        let mut table = base;
        let copied = copy.run(|fate, run, done| {
            match fate {
                Fate::Written => table.set(run, &layer),
                Fate::Zero => table.clear(run),
                Fate::Same => table.take(run, &old),
            }
            progress(done)
        });
        copied.map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => CheckpointError::Cancelled,
            _ => host("write", &path)(error),
        })?;
        self.memory.sync_data().map_err(host("write", &path))?;
        let id = self.id.clone();
        self.finish(&sections, size, &table, config)?;
        if let Some(running) = running {
            running.set_name(&id);
        }
        Ok(())
    }

    /// Writes what is left, makes all durable and gives it its name.
    fn finish(
        self,
        sections: &[Section],
        size: u64,
        table: &PageTable,
        config: &VmConfig,
    ) -> Result<(), CheckpointError> {
        let memory = self.write_pages(size, table)?;
        let sections = self.write_state(sections)?;
        let manifest = Manifest {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").into(),
            config: config.clone(),
            memory,
            sections,
        };
        let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other);
        self.add(MANIFEST, &text.map_err(host("write", &self.part.join(MANIFEST)))?)?;
        self.commit()
    }

    /// Makes all durable and gives it its name.
    fn commit(mut self) -> Result<(), CheckpointError> {
        sync_folder(&self.part)?;
        let place = self.store.path(&self.id);
        fs::rename(&self.part, &place).map_err(host("rename", &self.part))?;
        self.committed = true;
        // One that may be gone after a power cut was not made.
        sync_folder(&self.store.folder).inspect_err(|_| drop(fs::remove_dir_all(&place)))
    }

    fn write_pages(&self, size: u64, table: &PageTable) -> Result<MemoryTable, CheckpointError> {
        let layers: Vec<Arc<Layer>> = table.layers();
        let mut records = Vec::with_capacity(table.len() * RECORD);
        for (run, layer) in table.iter() {
            let number = layers.iter().position(|l| Arc::ptr_eq(l, layer)).unwrap_or(0) as u32;
            let mut run = run;
            while run.count > 0 {
                let count = run.count.min(u32::MAX.into()) as u32;
                records.extend_from_slice(&run.first.to_le_bytes());
                records.extend_from_slice(&count.to_le_bytes());
                records.extend_from_slice(&number.to_le_bytes());
                run = PageRun { first: run.first + u64::from(count), count: run.count - u64::from(count) };
            }
        }
        self.add(PAGES, &records)?;
        let name = |layer: &Arc<Layer>| layer.name().map(str::to_string);
        let names: Option<Vec<String>> = layers.iter().map(name).collect();
        let unnamed =
            || CheckpointError::Damaged { id: self.id.clone(), why: "it needs pages that are nowhere".into() };
        Ok(MemoryTable {
            size,
            layers: names.ok_or_else(unnamed)?,
            runs: (records.len() / RECORD) as u64,
            checksum: crc32fast::hash(&records),
        })
    }

    fn write_state(&self, sections: &[Section]) -> Result<Vec<SectionEntry>, CheckpointError> {
        let bytes: Vec<u8> = sections.iter().flat_map(|section| &section.bytes).copied().collect();
        self.add(STATE, &bytes)?;
        let entry = |section: &Section| SectionEntry {
            name: section.name.clone(),
            version: section.version,
            length: section.bytes.len() as u64,
            checksum: crc32fast::hash(&section.bytes),
        };
        Ok(sections.iter().map(entry).collect())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.committed {
            // What can't be removed now is removed with the next checkpoint that is.
            let _ = fs::remove_dir_all(&self.part);
        }
    }
}
