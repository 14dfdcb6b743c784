//! What is different between two points of a machine's past, or between one and the present.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use vmm_core::backend::disk::tools;

use super::{LibraryError, Machine, layers, snapshots};

/// Fields of a machine's file that say where it is in its past, not what it is.
const NOT_SETTINGS: &[&str] = &["schema", "id", "name", "created", "present", "resume", "restoring", "timeline"];

/// A setting that is another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingDiff {
    /// Its path in the machine's file, like `disks[1].readonly`.
    pub field: String,
    /// What it was; nothing where there was none.
    pub before: Option<String>,
    /// What it is.
    pub after: Option<String>,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff {
    /// Settings that are others.
    pub settings: Vec<SettingDiff>,
    /// By disk, from 0: what the images take on the host that only one of the two stands on, bytes. Disks of which one has
    /// none are left out: that is a setting.
    pub disks: BTreeMap<usize, u64>,
    /// RAM that is saved elsewhere, bytes; nothing where one of the two has none.
    pub memory: Option<u64>,
}

impl Machine {
    /// What is different between two snapshots, each by name or id; the second is the present when absent.
    ///
    /// # Errors
    /// There is no such snapshot, or an image can't be understood.
    pub fn diff(&self, before: &str, after: Option<&str>) -> Result<Diff, LibraryError> {
        let first = self.snapshot(before)?;
        let second = after.map(|after| self.snapshot(after)).transpose()?;
        let then = first.machine(self)?;
        let now = second.as_ref().map_or_else(|| Ok(self.clone()), |second| second.machine(self))?;
        let mut disks = BTreeMap::new();
        for (index, (a, b)) in then.config.disks.iter().zip(&now.config.disks).enumerate() {
            let [a, b] = [images(&self.resolve(&a.path))?, images(&self.resolve(&b.path))?];
            let either: BTreeMap<_, _> = a.iter().chain(&b).collect();
            let apart = either.into_iter().filter(|(file, _)| a.contains_key(*file) != b.contains_key(*file));
            disks.insert(index, apart.map(|(_, size)| size).sum());
        }
        let store = self.checkpoints().store().clone();
        let ram = |id: &str| snapshots::has_ram(&store.path(id));
        let memory = match &second {
            Some(second) if ram(&first.id) && ram(&second.id) => Some(store.difference(&first.id, &second.id)?),
            _ => None,
        };
        Ok(Diff { settings: settings(&then.text()?, &now.text()?), disks, memory })
    }
}

/// An image and what it stands on, with what each takes on the host.
fn images(path: &std::path::Path) -> Result<BTreeMap<PathBuf, u64>, LibraryError> {
    let info = tools::info(path).map_err(layers::image)?;
    Ok(info
        .layers
        .into_iter()
        .map(|layer| (layer.path.canonicalize().unwrap_or(layer.path), layer.host_size))
        .collect())
}

/// The settings of two machines' files that differ.
fn settings(before: &str, after: &str) -> Vec<SettingDiff> {
    let [before, after] = [before, after].map(flat);
    let fields: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differ = fields.into_iter().filter(|field| before.get(*field) != after.get(*field));
    let diff = |field: &String| SettingDiff {
        field: field.clone(),
        before: before.get(field).cloned(),
        after: after.get(field).cloned(),
    };
    differ.map(diff).collect()
}

/// Every setting of a machine's file by its path. Which image a disk is now is none.
fn flat(text: &str) -> BTreeMap<String, String> {
    fn walk(path: String, value: &toml::Value, all: &mut BTreeMap<String, String>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    walk(if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, all);
                }
            }
            toml::Value::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    walk(format!("{path}[{index}]"), value, all);
                }
            }
            toml::Value::String(text) => drop(all.insert(path, text.clone())),
            other => drop(all.insert(path, other.to_string())),
        }
    }
    let mut all = BTreeMap::new();
    let mut table: toml::Table = toml::from_str(text).unwrap_or_default();
    for field in NOT_SETTINGS {
        table.remove(*field);
    }
    walk(String::new(), &toml::Value::Table(table), &mut all);
    all.retain(|field, _| !(field.starts_with("disks[") && field.ends_with("].path")));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_differ_are_told_by_their_path_and_where_the_machine_is_is_none() {
        let before = "id = \"a\"\ncpus = 2\npresent = \"x\"\n[[disks]]\npath = \"a\"\n[boot]\nkind = \"bios\"\n";
        let after = "id = \"b\"\ncpus = 4\n[[disks]]\npath = \"b\"\nreadonly = true\n[boot]\nkind = \"bios\"\n";
        let told = settings(before, after);
        let diff = |field: &str, before: Option<&str>, after: Option<&str>| SettingDiff {
            field: field.into(),
            before: before.map(Into::into),
            after: after.map(Into::into),
        };
        assert_eq!(told, [diff("cpus", Some("2"), Some("4")), diff("disks[0].readonly", None, Some("true"))]);
    }
}
