"""A simulated population: people who come, talk, like what they hear or not, and come back or not.

What it is for
    An online test needs users. These talk through the lineage's public Service, as users of a product do: they open a
    session (`POST /v1/sessions`), chat (`POST /v1/chat/completions`, some of it streamed), press a thumb
    (`POST /v1/events`) and keep their cookie. They know nothing of arms; they only note which one they were told.

How people are
    Each has an activity rate from a heavy-tailed law, so that a few come often and many seldom, as measured everywhere.
    All share one hidden taste: they like a reply that asks them something and dislike a curt one (`taste`). No reward
    model sees it, neither in preferences nor in labels. What somebody heard moves the chance of going on with the
    conversation and how soon they come again, and nothing else does. So a model that asks back has more messages
    and more active days, and an A/B test can see it, while offline judgement cannot.

What is drawn and what is measured
    Who comes when, and who goes on after a given reply, follows from the seed (`life`); the replies, the arms and all
    times are those of the real servers. `rehearsal` plays the same people against fixed replies, without servers and
    within milliseconds: the sizes of the cluster tests were chosen by it.

Where it runs
    Inside the cluster, as a Job with the operator's image (it holds aiohttp) and this folder from a ConfigMap:
    nothing to build, and no port to forward. `job` starts it and reads its report, which is the last line of its log;
    every line is a whole report in JSON (`tally`). It ends by itself, by days or by requests, whichever is first.

    python -m e2e.population '{"url": "http://luna", "users": 100, "days": 5, "day_seconds": 20, "seed": 1}'

One line per file
    settings    what can be set, with defaults
    taste       how much a reply is liked: 0 to 1
    sayings     what people say
    life        one person, day by day: pure, seeded
    rehearsal   a whole population against fixed replies: pure, seeded
    browser     one person's HTTP: cookie, session, retries
    town        the population at the servers, in real time
    tally       what happened, as one line of JSON
    job         starts the population in a cluster and reads its report
"""
