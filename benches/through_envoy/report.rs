//! Variants side by side, and what was measured, as Markdown.

use std::fmt;

use crate::{
    Settings,
    stack::Process,
    variant::{Sample, Variant},
};

/// A comparison of two variants by one figure.
struct Ratio {
    what: &'static str,
    of: &'static str,
    to: &'static str,
    figure: fn(&Sample) -> Option<f64>,
    target: Option<Target>,
}

enum Target {
    AtLeast(f64),
    AtMost(f64),
}

const THROUGHPUT: fn(&Sample) -> Option<f64> = |sample| Some(sample.per_second);
const CPU: fn(&Sample) -> Option<f64> = |sample| sample.processor;
/// Envoy's and the processor's.
const ALL_CPU: fn(&Sample) -> Option<f64> = |sample| Some(sample.envoy + sample.processor.unwrap_or_default());

const fn at_least(part: f64) -> Option<Target> {
    Some(Target::AtLeast(part))
}

const fn at_most(part: f64) -> Option<Target> {
    Some(Target::AtMost(part))
}

const fn ratio(
    what: &'static str,
    of: &'static str,
    to: &'static str,
    figure: fn(&Sample) -> Option<f64>,
    target: Option<Target>,
) -> Ratio {
    Ratio { what, of, to, figure, target }
}

const RATIOS: [Ratio; 35] = [
    ratio("(b) to (a), throughput: the price of ext_proc", "b", "a", THROUGHPUT, None),
    ratio("(c) to (b), throughput", "c", "b", THROUGHPUT, at_least(0.97)),
    ratio("(c) to (b), CPU a request", "c", "b", CPU, at_most(1.05)),
    ratio("(d) to (c), throughput", "d", "c", THROUGHPUT, None),
    ratio("(d) to (c), CPU a request", "d", "c", CPU, None),
    ratio("(e) to (a), throughput", "e", "a", THROUGHPUT, at_least(0.95)),
    ratio("(f) JSON to (c), CPU a request", "f", "c", CPU, at_most(1.0)),
    ratio("(f) page to (c), CPU a request", "f page", "c", CPU, at_most(1.0)),
    ratio("(f) page to (c), throughput", "f page", "c", THROUGHPUT, None),
    ratio("(g) with to without the filter", "g filter", "g", THROUGHPUT, at_least(0.98)),
    ratio("(h) to (c), CPU a request: 100,000 routes to one", "h", "c", CPU, None),
    ratio("(h) as (f) to as (c), CPU a request", "h refused", "h", CPU, at_most(1.0)),
    ratio("(l) to (i), throughput: the price of ext_proc", "l", "i", THROUGHPUT, None),
    ratio("(k) to (j), throughput", "k", "j", THROUGHPUT, at_least(0.97)),
    ratio("(k) to (j), CPU a request", "k", "j", CPU, at_most(1.05)),
    ratio("(k) to (j), CPU a request with Envoy's", "k", "j", ALL_CPU, at_most(1.05)),
    ratio("(m) to (l), throughput", "m", "l", THROUGHPUT, at_least(0.97)),
    ratio("(m) to (l), CPU a request", "m", "l", CPU, at_most(1.05)),
    ratio("(m) to (l), CPU a request with Envoy's", "m", "l", ALL_CPU, at_most(1.05)),
    ratio("(m) to (r), CPU a request: to one with our own gRPC", "m", "r", CPU, None),
    ratio("(m) to (r), CPU a request with Envoy's", "m", "r", ALL_CPU, None),
    ratio("(m) to (k), CPU a request", "m", "k", CPU, None),
    ratio("(n) to (m), throughput", "n", "m", THROUGHPUT, None),
    ratio("(n) to (m), CPU a request with Envoy's", "n", "m", ALL_CPU, at_most(1.05)),
    ratio("(o) to (m), throughput", "o", "m", THROUGHPUT, None),
    ratio("(o) to (m), CPU a request: many people to one", "o", "m", CPU, None),
    ratio("(p) one person to (m), CPU a request: no token kept", "p", "m", CPU, None),
    ratio("(s) to (m), CPU a request: many people's tokens kept to one's", "s", "m", CPU, at_most(1.05)),
    ratio("(p) beside many tokens to one person's alone, CPU a request", "p beside", "p", CPU, at_most(1.05)),
    ratio("(p) many to one person, throughput", "p many", "p beside", THROUGHPUT, None),
    ratio("(p) many to one person, CPU a request", "p many", "p beside", CPU, None),
    ratio("(m) to (q), throughput: to `ext_authz`", "m", "q", THROUGHPUT, None),
    ratio("(m) to (q), CPU a request", "m", "q", CPU, None),
    ratio("(m) to (q), CPU a request with Envoy's", "m", "q", ALL_CPU, None),
    ratio("(m) to (i), CPU a request with Envoy's: to no filter", "m", "i", ALL_CPU, None),
];

/// Measures all that is asked for, in rounds, and prints what came of it. Gives the samples, those of each variant in its
/// place.
pub async fn compare(settings: &Settings, envoy: &Process, variants: &[Variant<'_>]) -> Vec<Vec<Sample>> {
    let Settings { rounds, seconds, connections, letters, .. } = settings;
    for variant in variants.iter().filter(|variant| variant.is_among(letters)) {
        variant.check().await;
        variant.measure(envoy, 1, *connections).await;
    }
    let mut samples: Vec<Vec<Sample>> = variants.iter().map(|_| Vec::new()).collect();
    for round in 1..=*rounds {
        eprintln!("round {round} of {rounds}");
        for (variant, samples) in variants.iter().zip(&mut samples).filter(|(variant, _)| variant.is_among(letters)) {
            samples.push(variant.measure(envoy, *seconds, *connections).await);
        }
    }
    print(settings, variants, &samples);
    samples
}

fn print(settings: &Settings, variants: &[Variant<'_>], samples: &[Vec<Sample>]) {
    let Settings { rounds, seconds, connections, .. } = settings;
    println!("\n## Through one Envoy\n");
    println!("{rounds} rounds of {seconds} s for each variant, {connections} connections, medians.\n");
    println!("| variant | requests a second | p50, ms | p99, ms | CPU s a million, processor | and Envoy |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for (variant, samples) in variants.iter().zip(samples).filter(|(_, samples)| !samples.is_empty()) {
        let median = |figure: fn(&Sample) -> Option<f64>| quartiles(samples.iter().filter_map(figure).collect());
        let cpu = median(CPU).map_or("–".to_owned(), |[_, cpu, _]| format!("{cpu:.1}"));
        let figures: [fn(&Sample) -> Option<f64>; 4] =
            [THROUGHPUT, |sample| Some(sample.p50), |sample| Some(sample.p99), |sample| Some(sample.envoy)];
        let [per_second, p50, p99, envoy] = figures.map(|figure| median(figure).map_or(0.0, |[_, median, _]| median));
        println!("| {} | {per_second:.0} | {p50:.2} | {p99:.2} | {cpu} | {envoy:.1} |", variant.name);
    }
    let of = |key: &str| {
        let found = variants.iter().zip(samples).find(|(variant, _)| variant.key == key);
        found.map_or(&[][..], |(_, samples)| samples)
    };
    println!("\nRatios of the same round:\n");
    println!("| ratio | median | quartiles | target | |");
    println!("| --- | ---: | --- | --- | --- |");
    for Ratio { what, of: of_key, to, figure, target } in RATIOS {
        let ratios = of(of_key).iter().zip(of(to)).filter_map(|(of, to)| Some(figure(of)? / figure(to)?));
        let Some(found @ [low, median, high]) = quartiles(ratios.collect()) else { continue };
        let (wanted, is_reached) = match target {
            None => (String::new(), ""),
            Some(target) => (target.to_string(), target.verdict(found)),
        };
        println!("| {what} | {median:.3} | {low:.3} to {high:.3} | {wanted} | {is_reached} |");
    }
}

impl Target {
    /// Where not even the middle half of what was measured is on one side of it, nothing is shown.
    fn verdict(&self, [low, _, high]: [f64; 3]) -> &'static str {
        let (worst_is_good, best_is_bad) = match *self {
            Self::AtLeast(least) => (low >= least, high < least),
            Self::AtMost(most) => (high <= most, low > most),
        };
        match (worst_is_good, best_is_bad) {
            (true, _) => "reached",
            (false, true) => "not reached",
            (false, false) => "not shown",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "≥ {least}"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

pub fn mark(reached: bool) -> &'static str {
    if reached { "reached" } else { "not reached" }
}

fn quartiles(mut values: Vec<f64>) -> Option<[f64; 3]> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |part: f64| {
        let place = part * last as f64;
        let (low, high) = (values[place.floor() as usize], values[place.ceil() as usize]);
        low + (high - low) * place.fract()
    };
    Some([at(0.25), at(0.5), at(0.75)])
}
