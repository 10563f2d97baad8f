//! Decides which window is active, and what that means for the target. No IO, no clock: `now` is an argument.
//!
//! Windows are times of a local week. They are compared with each other there, where no day is longer than another;
//! for a certain week they become instants, by the rules of the time zone.

use k8s_openapi::jiff::{
    Timestamp, ToSpan,
    civil::{Date, Time, Weekday},
    tz::{AmbiguousOffset, TimeZone},
};
use kube::core::GroupVersionKind;

use super::{
    target::Target,
    types::{Day, ScaleScheduleSpec, Window},
};
use crate::reconcile::input::{self, ObjectName};

const MINUTES_A_DAY: u32 = 24 * 60;
const MINUTES_A_WEEK: u32 = 7 * MINUTES_A_DAY;

/// A spec that means something.
#[derive(Clone, Debug)]
pub struct Valid {
    pub(in crate::kinds) target: GroupVersionKind,
    pub(in crate::kinds) name: ObjectName,
    suspend: bool,
    zone: TimeZone,
    slots: Vec<Slot>,
}

/// A window on one of its days.
#[derive(Clone, Debug)]
struct Slot {
    day: Weekday,
    from: Time,
    to: Time,
    replicas: i32,
    label: String,
}

impl Slot {
    fn ends_next_day(&self) -> bool {
        self.to <= self.from
    }

    /// Minutes of the week; the end may lie in the next one.
    fn minutes(&self) -> (u32, u32) {
        let minute = |time: Time| u32::from(time.hour().unsigned_abs()) * 60 + u32::from(time.minute().unsigned_abs());
        let day = u32::from(self.day.to_monday_zero_offset().unsigned_abs()) * MINUTES_A_DAY;
        let end = day + minute(self.to) + if self.ends_next_day() { MINUTES_A_DAY } else { 0 };
        (day + minute(self.from), end)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (begin, end) = self.minutes();
        let (other_begin, other_end) = other.minutes();
        // Either may reach into the next week, where the other is again.
        [0, MINUTES_A_WEEK].iter().any(|week| begin < other_end + week && other_begin + week < end)
            || (other_begin < end + MINUTES_A_WEEK && begin + MINUTES_A_WEEK < other_end)
    }
}

/// What the clock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    pub(super) active: Option<Active>,
    /// When that changes.
    pub(super) next: Option<Timestamp>,
}

/// The window that is active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Active {
    pub(super) label: String,
    pub(super) replicas: i32,
}

/// Says what is wrong with a spec. The API server checks some of it already, but not for objects older than the rule.
pub(in crate::kinds) fn validate(spec: &ScaleScheduleSpec) -> Result<Valid, String> {
    let ScaleScheduleSpec { target_ref, timezone, suspend, windows } = spec;
    let target = input::gvk(&target_ref.api_version, &target_ref.kind);
    let target = target.map_err(|wrong| format!("spec.targetRef.{wrong}"))?;
    let name = ObjectName::dns(&target_ref.name).map_err(|wrong| format!("spec.targetRef.name: {wrong}"))?;
    let zone = TimeZone::get(timezone)
        .map_err(|_| format!("spec.timezone: {timezone:?} is no time zone; write one such as Europe/Berlin"))?;
    if windows.is_empty() {
        return Err("spec.windows: at least one is required".to_owned());
    }
    let mut slots: Vec<(usize, Slot)> = Vec::new();
    for (number, window) in windows.iter().enumerate() {
        for slot in slots_of(number, window)? {
            if let Some((first, _)) = slots.iter().find(|(_, other)| other.overlaps(&slot)) {
                return Err(match *first == number {
                    true => format!("spec.windows[{number}] overlaps with itself: {}", slot.label),
                    false => format!("spec.windows[{number}] overlaps with spec.windows[{first}]: {}", slot.label),
                });
            }
            slots.push((number, slot));
        }
    }
    Ok(Valid { target, name, suspend: *suspend, zone, slots: slots.into_iter().map(|(_, slot)| slot).collect() })
}

fn slots_of(number: usize, window: &Window) -> Result<Vec<Slot>, String> {
    let Window { days, from, to, replicas } = window;
    let time = |text: &str, field: &str| {
        let bad = || format!("spec.windows[{number}].{field}: {text:?} is no time such as 22:00");
        let (hour, minute) = text.split_once(':').filter(|_| text.len() == 5).ok_or_else(bad)?;
        let (hour, minute) = (hour.parse().map_err(|_| bad())?, minute.parse().map_err(|_| bad())?);
        Time::new(hour, minute, 0, 0).map_err(|_| bad())
    };
    let (from_time, to_time) = (time(from, "from")?, time(to, "to")?);
    if from_time == to_time {
        return Err(format!("spec.windows[{number}]: from and to must differ"));
    }
    if days.is_empty() {
        return Err(format!("spec.windows[{number}].days: at least one is required"));
    }
    if *replicas < 0 {
        return Err(format!("spec.windows[{number}].replicas must not be negative"));
    }
    let slot = |day: &Day| Slot {
        day: weekday(*day),
        from: from_time,
        to: to_time,
        replicas: *replicas,
        label: format!("{day:?} {from}-{to}"),
    };
    Ok(days.iter().map(slot).collect())
}

fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}

/// What is known of the clock and of the target.
#[expect(clippy::large_enum_variant, reason = "there is one in a pass, which is taken apart at once")]
#[derive(Debug)]
pub enum Observed {
    /// No window is active, and nothing is to be restored: the target is not looked at.
    Rests { now: Timestamp, windows: Windows },
    /// The target has so many replicas.
    Scales { now: Timestamp, windows: Windows, target: Target, found: i32, saved: Option<i32>, is_held: bool },
}

/// What to do.
#[derive(Debug)]
pub enum Plan {
    /// Leave the target to its owner.
    Rest { now: Timestamp, windows: Windows },
    /// Make sure that the schedule does not go before what it changes is restored.
    AddFinalizer,
    /// Store what was found, and scale to what the active window says.
    Hold { now: Timestamp, windows: Windows, target: Target, found: i32, replicas: i32 },
    /// Scale to what was there before the window.
    Restore { now: Timestamp, windows: Windows, target: Target, found: i32, replicas: i32 },
}

/// Decides what to do with the target.
pub(super) fn plan(observed: Observed) -> Plan {
    let (now, windows, target, found, saved, is_held) = match observed {
        Observed::Rests { now, windows } => return Plan::Rest { now, windows },
        Observed::Scales { now, windows, target, found, saved, is_held } => {
            (now, windows, target, found, saved, is_held)
        }
    };
    match &windows.active {
        Some(_) if !is_held => Plan::AddFinalizer,
        Some(active) => Plan::Hold { now, replicas: active.replicas, windows, target, found },
        None => Plan::Restore { now, windows, target, found, replicas: saved.unwrap_or(found) },
    }
}

/// What the clock says now; nothing while the schedule is suspended.
pub(super) fn windows(now: Timestamp, valid: &Valid) -> Windows {
    if valid.suspend {
        return Windows { active: None, next: None };
    }
    let today = now.to_zoned(valid.zone.clone()).date();
    // One that began yesterday may last; and in eight days every window has begun and ended.
    let days = (-2..=8).filter_map(|ahead: i32| today.checked_add(ahead.days()).ok());
    let mut spans: Vec<(Timestamp, Timestamp, &Slot)> = days
        .flat_map(|date| {
            valid.slots.iter().filter(move |slot| slot.day == date.weekday()).map(move |slot| (date, slot))
        })
        .filter_map(|(date, slot)| {
            let last = if slot.ends_next_day() { date.tomorrow().ok()? } else { date };
            Some((instant(&valid.zone, date, slot.from)?, instant(&valid.zone, last, slot.to)?, slot))
        })
        .collect();
    spans.sort_by_key(|(begin, ..)| *begin);
    let at = |instant: Timestamp| {
        spans.iter().rfind(|(begin, end, _)| *begin <= instant && instant < *end).map(|(_, _, slot)| *slot)
    };
    let active = at(now);
    let label = |slot: Option<&Slot>| slot.map(|slot| slot.label.clone());
    let mut edges: Vec<Timestamp> =
        spans.iter().flat_map(|(begin, end, _)| [*begin, *end]).filter(|edge| *edge > now).collect();
    edges.sort();
    let next = edges.into_iter().find(|edge| label(at(*edge)) != label(active));
    Windows { active: active.map(|slot| Active { label: slot.label.clone(), replicas: slot.replicas }), next }
}

/// When a clock there shows that time: one that it skips is when it goes on, one that it shows twice is the first.
fn instant(zone: &TimeZone, date: Date, time: Time) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(date.to_datetime(time));
    match ambiguous.offset() {
        AmbiguousOffset::Gap { .. } => {
            // As read from the clock that is already ahead, it lies just before the jump.
            let before = ambiguous.earlier().ok()?;
            zone.following(before).next().map(|jump| jump.timestamp())
        }
        _ => ambiguous.compatible().ok(),
    }
}
