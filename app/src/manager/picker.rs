//! Choosing a file without the desktop's help: a path that is typed with completion, and a list of what is there.
//!
//! The folder's content comes from a worker; this is only the state and what keys do to it.

use std::path::{Path, PathBuf};

use super::action::Purpose;

/// Something in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its size, bytes; `None` for a folder.
    pub size: Option<u64>,
}

impl Entry {
    /// It can be entered.
    pub fn is_folder(&self) -> bool {
        self.size.is_none()
    }
}

/// An open picker.
#[derive(Debug, Clone, PartialEq)]
pub struct Picker {
    /// What the file is for.
    pub purpose: Purpose,
    /// The path as typed. Up to its last slash it is the folder that is listed; after that it narrows the list.
    pub text: String,
    /// The folder that was asked for last.
    folder: PathBuf,
    /// What is in it, or why that can't be told; `None` until it is known.
    listing: Option<Result<Vec<Entry>, String>>,
    /// The row that the arrow keys are on, among those shown.
    pub row: Option<usize>,
    /// The text field gets the keyboard, the cursor at its end, in the next frame.
    pub focus: bool,
}

/// What a key or a click leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet.
    Stay,
    /// This folder is to be listed.
    List(PathBuf),
    /// This file was chosen.
    Chosen(PathBuf),
}

impl Picker {
    /// Opens in a folder; [`Outcome::List`] of it is to be followed.
    pub fn open(purpose: Purpose, folder: &Path) -> (Picker, Outcome) {
        let text = with_slash(folder);
        let picker = Picker { purpose, text, folder: folder.to_path_buf(), listing: None, row: None, focus: true };
        let folder = picker.folder.clone();
        (picker, Outcome::List(folder))
    }

    /// A folder was read.
    pub fn listed(&mut self, folder: &Path, listing: Result<Vec<Entry>, String>) {
        if folder == self.folder {
            self.listing = Some(listing);
            self.row = None;
        }
    }

    /// What is shown, in order; or why nothing is.
    pub fn shown(&self) -> Result<Vec<&Entry>, &str> {
        let wish = self.narrowing().to_lowercase();
        let hidden = wish.starts_with('.');
        let fits =
            |entry: &&Entry| entry.name.to_lowercase().contains(&wish) && (hidden || !entry.name.starts_with('.'));
        match &self.listing {
            Some(Ok(entries)) => Ok(entries.iter().filter(fits).collect()),
            Some(Err(problem)) => Err(problem),
            None => Ok(Vec::new()),
        }
    }

    /// The folder has not been read yet.
    pub fn is_waiting(&self) -> bool {
        self.listing.is_none()
    }

    /// What stands after the last slash.
    fn narrowing(&self) -> &str {
        self.text.rsplit('/').next().unwrap_or_default()
    }

    /// The folder that the text names.
    fn typed_folder(&self) -> PathBuf {
        match self.text.rfind('/') {
            Some(0) | None => PathBuf::from("/"),
            Some(slash) => PathBuf::from(&self.text[..slash]),
        }
    }

    /// The text was changed by hand.
    pub fn typed(&mut self) -> Outcome {
        if self.text == "~" || self.text.starts_with("~/") {
            let home = std::env::var("HOME").unwrap_or_default();
            self.text = format!("{home}/{}", self.text[1..].trim_start_matches('/'));
            self.focus = true;
        }
        self.row = None;
        let folder = self.typed_folder();
        if folder == self.folder {
            return Outcome::Stay;
        }
        self.go(folder)
    }

    fn go(&mut self, folder: PathBuf) -> Outcome {
        self.folder = folder.clone();
        self.listing = None;
        self.row = None;
        Outcome::List(folder)
    }

    /// To the folder above.
    pub fn up(&mut self) -> Outcome {
        let folder = self.typed_folder();
        let above = folder.parent().unwrap_or(Path::new("/")).to_path_buf();
        self.text = with_slash(&above);
        self.focus = true;
        self.go(above)
    }

    /// Tab: the text grows by what all that fit have in common.
    pub fn complete(&mut self) -> Outcome {
        let wish = self.narrowing().to_string();
        let Ok(shown) = self.shown() else { return Outcome::Stay };
        let fits: Vec<&Entry> = shown.into_iter().filter(|entry| entry.name.starts_with(&wish)).collect();
        let Some(first) = fits.first() else { return Outcome::Stay };
        let mut common = first.name.as_str();
        for entry in &fits[1..] {
            let same = common.char_indices().zip(entry.name.chars()).find(|((_, a), b)| a != b);
            let end = same.map_or(common.len().min(entry.name.len()), |((at, _), _)| at);
            common = &common[..end];
        }
        let enter = fits.len() == 1 && first.is_folder();
        let text = format!("{}{common}{}", with_slash(&self.typed_folder()), if enter { "/" } else { "" });
        self.text = text;
        self.focus = true;
        self.typed()
    }

    /// An arrow key: `by` rows down.
    pub fn step(&mut self, by: i32) {
        let count = self.shown().map_or(0, |shown| shown.len());
        if count == 0 {
            return;
        }
        let last = i32::try_from(count - 1).unwrap_or(i32::MAX);
        let now = self.row.map_or(if by > 0 { -1 } else { 0 }, |row| i32::try_from(row).unwrap_or(i32::MAX));
        self.row = usize::try_from(now.saturating_add(by).clamp(0, last)).ok();
    }

    /// A row was opened.
    pub fn open_row(&mut self, row: usize) -> Outcome {
        let Some((name, is_folder)) =
            self.shown().ok().and_then(|shown| shown.get(row).map(|entry| (entry.name.clone(), entry.is_folder())))
        else {
            return Outcome::Stay;
        };
        let path = self.typed_folder().join(name);
        if is_folder {
            self.text = with_slash(&path);
            self.focus = true;
            return self.go(path);
        }
        Outcome::Chosen(path)
    }

    /// Enter: opens the row that the arrows are on, or the typed path.
    pub fn enter(&mut self) -> Outcome {
        if let Some(row) = self.row {
            return self.open_row(row);
        }
        let wish = self.narrowing().to_string();
        let Ok(shown) = self.shown() else { return Outcome::Stay };
        let exact = shown.iter().position(|entry| entry.name == wish);
        let only = (shown.len() == 1 && !wish.is_empty()).then_some(0);
        match exact.or(only) {
            Some(row) => self.open_row(row),
            None => Outcome::Stay,
        }
    }

    /// What Enter would choose, if it is a file.
    pub fn would_choose(&self) -> bool {
        let mut copy = self.clone();
        matches!(copy.enter(), Outcome::Chosen(_))
    }
}

fn with_slash(folder: &Path) -> String {
    let text = folder.display().to_string();
    if text.ends_with('/') { text } else { format!("{text}/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, size: Option<u64>) -> Entry {
        Entry { name: name.into(), size }
    }

    fn picker() -> Picker {
        let (mut picker, outcome) = Picker::open(Purpose::Open, Path::new("/media"));
        assert_eq!(outcome, Outcome::List("/media".into()));
        let listing = vec![
            entry("isos", None),
            entry(".hidden", Some(1)),
            entry("debian-11.iso", Some(5)),
            entry("debian-12.iso", Some(6)),
            entry("Grub.iso", Some(7)),
        ];
        picker.listed(Path::new("/media"), Ok(listing));
        picker
    }

    fn names(picker: &Picker) -> Vec<&str> {
        picker.shown().unwrap().into_iter().map(|entry| entry.name.as_str()).collect()
    }

    #[test]
    fn typing_narrows_the_list_whatever_the_letters_case() {
        let mut picker = picker();
        assert_eq!(names(&picker), ["isos", "debian-11.iso", "debian-12.iso", "Grub.iso"]);
        picker.text = "/media/grub".into();
        assert_eq!(picker.typed(), Outcome::Stay);
        assert_eq!(names(&picker), ["Grub.iso"]);
        assert_eq!(picker.enter(), Outcome::Chosen("/media/Grub.iso".into()));
        picker.text = "/media/.".into();
        assert!(names(&picker).contains(&".hidden"));
    }

    #[test]
    fn tab_completes_as_far_as_all_agree_and_enters_a_single_folder() {
        let mut picker = picker();
        picker.text = "/media/d".into();
        assert_eq!(picker.complete(), Outcome::Stay);
        assert_eq!(picker.text, "/media/debian-1");
        picker.text = "/media/is".into();
        assert_eq!(picker.complete(), Outcome::List("/media/isos".into()));
        assert_eq!(picker.text, "/media/isos/");
        assert!(picker.is_waiting());
    }

    #[test]
    fn arrows_walk_the_rows_and_enter_opens_the_one_they_are_on() {
        let mut picker = picker();
        picker.step(1);
        picker.step(1);
        assert_eq!(picker.row, Some(1));
        assert!(picker.would_choose());
        assert_eq!(picker.enter(), Outcome::Chosen("/media/debian-11.iso".into()));
        picker.step(-5);
        assert_eq!(picker.enter(), Outcome::List("/media/isos".into()));
    }

    #[test]
    fn another_folder_in_the_text_is_listed_and_a_late_answer_for_the_old_one_is_ignored() {
        let mut picker = picker();
        picker.text = "/tmp/x".into();
        assert_eq!(picker.typed(), Outcome::List("/tmp".into()));
        picker.listed(Path::new("/media"), Ok(vec![entry("late", Some(1))]));
        assert!(picker.is_waiting());
        picker.listed(Path::new("/tmp"), Err("it is not there".into()));
        assert_eq!(picker.shown(), Err("it is not there"));
        assert_eq!(picker.enter(), Outcome::Stay);
    }

    #[test]
    fn up_leads_to_the_root_and_stays_there() {
        let mut picker = picker();
        assert_eq!(picker.up(), Outcome::List("/".into()));
        assert_eq!(picker.text, "/");
        assert_eq!(picker.up(), Outcome::List("/".into()));
        assert_eq!(picker.text, "/");
    }
}
