package rocketcluster.clients;

import static rocketcluster.clients.Rig.body;
import static rocketcluster.clients.Rig.check;
import static rocketcluster.clients.Rig.equal;
import static rocketcluster.clients.Rig.ok;
import static rocketcluster.clients.Rig.until;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;

/** What users of a stock client do, each with a topic and a group of its own, several at a time. */
final class Scenarios {
    private interface Scenario {
        void run(Rig rig) throws Exception;
    }

    private static final Map<String, Scenario> ALL = new LinkedHashMap<>();

    static {
        // The long ones first: they mostly wait.
        ALL.put("retry-to-dlq", Scenarios::retryToDlq);
        ALL.put("clustering-shared", Scenarios::clusteringShared);
        ALL.put("ordered", Scenarios::ordered);
        ALL.put("offsets-over-restart", Scenarios::offsetsOverRestart);
        ALL.put("delay-levels", Scenarios::delayLevels);
        ALL.put("lite-pull", Scenarios::litePull);
        ALL.put("sync", Scenarios::sync);
        ALL.put("async", Scenarios::async);
        ALL.put("oneway", Scenarios::oneway);
        ALL.put("batch", Scenarios::batch);
        ALL.put("broadcasting", Scenarios::broadcasting);
        ALL.put("pull", Scenarios::pull);
        ALL.put("tags", Scenarios::tags);
        ALL.put("auto-created-topic", Scenarios::autoCreatedTopic);
        ALL.put("compressed-body", Scenarios::compressedBody);
        ALL.put("query-by-id-and-key", Scenarios::query);
        ALL.put("large-message", Scenarios::largeMessage);
        ALL.put("offset-search", Scenarios::offsetSearch);
        ALL.put("fast-port", Scenarios::fastPort);
        ALL.put("trace", Scenarios::trace);
        ALL.put("refusals", Scenarios::refusals);
        ALL.put("latest-offset", Scenarios::latestOffset);
        ALL.put("push-latency", Scenarios::pushLatency);
    }

    private Scenarios() {
    }

    static int run(Options options) throws Exception {
        String only = options.get("only", "");
        Set<String> chosen = only.isEmpty() ? ALL.keySet() : new HashSet<>(List.of(only.split(",")));
        for (String name : chosen) {
            if (!ALL.containsKey(name)) {
                throw new IllegalArgumentException("no scenario " + name + ", there are " + ALL.keySet());
            }
        }
        String namesrv = options.namesrv();
        String run = Long.toString(System.currentTimeMillis() % 100_000_000, 36) + options.get("suffix", "");
        DefaultMQAdminExt admin = Rig.admin(namesrv);
        ExecutorService threads = Executors.newFixedThreadPool(options.number("threads", 8));
        AtomicInteger passed = new AtomicInteger();
        AtomicInteger failed = new AtomicInteger();
        for (Map.Entry<String, Scenario> entry : ALL.entrySet()) {
            if (chosen.contains(entry.getKey())) {
                threads.execute(() -> {
                    boolean good = one(entry.getKey(), entry.getValue(), new Rig(namesrv, run, entry.getKey(), admin));
                    (good ? passed : failed).incrementAndGet();
                });
            }
        }
        threads.shutdown();
        if (!threads.awaitTermination(options.number("timeout", 240), TimeUnit.SECONDS)) {
            Thread.getAllStackTraces().forEach((thread, stack) -> {
                if (thread.getName().startsWith("scenario ")) {
                    say("FAIL " + thread.getName().substring(9) + " still running at " + List.of(stack).subList(0, Math.min(6, stack.length)));
                    failed.incrementAndGet();
                }
            });
        }
        say(passed + " passed, " + failed + " failed");
        return failed.get() == 0 && passed.get() > 0 ? 0 : 1;
    }

    private static boolean one(String name, Scenario scenario, Rig rig) {
        long began = System.nanoTime();
        Thread.currentThread().setName("scenario " + name);
        String verdict;
        boolean good = false;
        try (rig) {
            scenario.run(rig);
            verdict = "PASS " + name + " " + TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - began);
            good = true;
        } catch (Throwable e) {
            verdict = "FAIL " + name + " " + (e instanceof Rig.Failed ? e.getMessage() : e.toString()).replace('\n', ' ');
            if (!(e instanceof Rig.Failed)) {
                e.printStackTrace();
            }
        }
        say(verdict);
        Thread.currentThread().setName("idle");
        return good;
    }

    private static synchronized void say(String line) {
        System.out.println(line);
        System.out.flush();
    }

    private static Message message(String topic, String body) {
        return new Message(topic, body.getBytes(StandardCharsets.UTF_8));
    }

    private static Set<String> numbered(String prefix, int count) {
        Set<String> bodies = new TreeSet<>();
        for (int i = 0; i < count; i++) {
            bodies.add(prefix + i);
        }
        return bodies;
    }

    private static void sendAll(DefaultMQProducer producer, String topic, Collection<String> bodies) throws Exception {
        for (String body : bodies) {
            ok(producer.send(message(topic, body)));
        }
    }

    private static void sync(Rig rig) throws Exception {
        int queues = rig.createTopic().size();
        DefaultMQProducer producer = rig.producer();
        Map<MessageQueue, Long> next = new HashMap<>();
        Set<String> ids = new HashSet<>();
        for (String body : numbered("sync ", 100)) {
            SendResult result = ok(producer.send(message(rig.topic, body)));
            check(ids.add(result.getMsgId()), "the same id twice: " + result.getMsgId());
            equal(next.getOrDefault(result.getMessageQueue(), 0L), result.getQueueOffset(), "queue offset");
            next.put(result.getMessageQueue(), result.getQueueOffset() + 1);
            equal("DefaultRegion", result.getRegionId(), "region");
            equal(32, result.getOffsetMsgId().length(), "length of the offset message id");
        }
        equal(queues, next.size(), "queues used in turn");
        Inbox inbox = new Inbox();
        rig.start(rig.newPushConsumer(), "*", inbox);
        inbox.exactly(numbered("sync ", 100), 30);
    }

    private static void async(Rig rig) throws Exception {
        rig.createTopic();
        DefaultMQProducer producer = rig.producer();
        CountDownLatch answered = new CountDownLatch(200);
        ConcurrentLinkedQueue<Throwable> errors = new ConcurrentLinkedQueue<>();
        for (int i = 0; i < 200; i++) {
            producer.send(message(rig.topic, "async " + i), new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    answered.countDown();
                }

                @Override
                public void onException(Throwable e) {
                    errors.add(e);
                    answered.countDown();
                }
            });
        }
        check(answered.await(30, TimeUnit.SECONDS), answered.getCount() + " sends were not answered");
        check(errors.isEmpty(), errors.size() + " sends failed: " + errors.peek());
        until(15, "200 stored messages", () -> rig.stored(rig.topic) == 200);
    }

    private static void oneway(Rig rig) throws Exception {
        rig.createTopic();
        DefaultMQProducer producer = rig.producer();
        for (int i = 0; i < 50; i++) {
            producer.sendOneway(message(rig.topic, "oneway " + i));
        }
        until(15, "50 stored messages", () -> rig.stored(rig.topic) == 50);
    }

    private static void batch(Rig rig) throws Exception {
        rig.createTopic();
        DefaultMQProducer producer = rig.producer();
        List<Message> messages = new ArrayList<>();
        for (String body : numbered("batch ", 20)) {
            messages.add(new Message(rig.topic, "tag", "key-" + body.substring(6), body.getBytes(StandardCharsets.UTF_8)));
        }
        SendResult result = ok(producer.send(messages));
        equal(20, result.getMsgId().split(",").length, "ids in the result");
        equal(20, result.getOffsetMsgId().split(",").length, "offset ids in the result");
        equal(0L, result.getQueueOffset(), "offset of the first");
        equal(20L, ok(producer.send(messages, result.getMessageQueue())).getQueueOffset(), "offset of the second batch's first");
        Inbox inbox = new Inbox();
        rig.start(rig.newPushConsumer(), "tag", inbox);
        until(30, "40 messages", () -> inbox.size() == 40);
        equal(numbered("batch ", 20), inbox.bodies(), "bodies");
        for (MessageExt message : inbox.all()) {
            equal("key-" + body(message).substring(6), message.getKeys(), "key");
            equal(result.getMessageQueue().getQueueId(), message.getQueueId(), "queue");
        }
        until(15, "a message of the batch by its key",
            () -> rig.admin.queryMessage(rig.topic, "key-7", 32, 0, Long.MAX_VALUE).getMessageList().size() == 2);
    }

    private static void ordered(Rig rig) throws Exception {
        rig.createTopic();
        DefaultMQProducer producer = rig.producer();
        Map<String, List<Integer>> steps = new ConcurrentHashMap<>();
        AtomicInteger received = new AtomicInteger();
        AtomicBoolean suspended = new AtomicBoolean();
        for (int n = 0; n < 2; n++) {
            DefaultMQPushConsumer consumer = rig.newPushConsumer();
            consumer.setSuspendCurrentQueueTimeMillis(100);
            consumer.subscribe(rig.topic, "*");
            consumer.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
                if (suspended.compareAndSet(false, true)) {
                    return ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT;
                }
                for (MessageExt message : messages) {
                    String[] parts = body(message).split(" ");
                    steps.computeIfAbsent(parts[0], order -> new ArrayList<>()).add(Integer.valueOf(parts[1]));
                    received.incrementAndGet();
                }
                return ConsumeOrderlyStatus.SUCCESS;
            });
            rig.start(consumer);
        }
        for (int step = 0; step < 10; step++) {
            for (int order = 0; order < 16; order++) {
                ok(producer.send(message(rig.topic, "order" + order + " " + step), (queues, message, argument) ->
                    queues.get((Integer) argument % queues.size()), order));
            }
        }
        until(60, "160 messages in order", () -> received.get() >= 160);
        equal(160, received.get(), "messages received");
        for (Map.Entry<String, List<Integer>> order : steps.entrySet()) {
            equal(List.of(0, 1, 2, 3, 4, 5, 6, 7, 8, 9), order.getValue(), order.getKey());
        }
    }

    private static Set<MessageQueue> owned(DefaultMQPushConsumer consumer, String topic) {
        Set<MessageQueue> queues = new HashSet<>();
        consumer.getDefaultMQPushConsumerImpl().getRebalanceImpl().getProcessQueueTable().forEach((queue, state) -> {
            if (queue.getTopic().equals(topic) && !state.isDropped()) {
                queues.add(queue);
            }
        });
        return queues;
    }

    /** Two consumers share the queues as soon as the second is there (code 40, not the 20 s tick), and one takes all over when the other leaves. */
    private static void clusteringShared(Rig rig) throws Exception {
        int queues = rig.createTopic().size();
        DefaultMQProducer producer = rig.producer();
        Inbox first = new Inbox();
        Inbox second = new Inbox();
        DefaultMQPushConsumer one = rig.start(rig.newPushConsumer(), "*", first);
        until(30, "all queues at the first consumer", () -> owned(one, rig.topic).size() == queues);
        sendAll(producer, rig.topic, numbered("alone ", 16));
        first.exactly(numbered("alone ", 16), 15);

        DefaultMQPushConsumer two = rig.newPushConsumer();
        rig.start(two, "*", second);
        until(10, "half of the queues at each consumer",
            () -> owned(one, rig.topic).size() == queues / 2 && owned(two, rig.topic).size() == queues / 2);
        Set<MessageQueue> both = owned(one, rig.topic);
        both.retainAll(owned(two, rig.topic));
        check(both.isEmpty(), "queues owned by both: " + both);
        Set<String> shared = numbered("shared ", 64);
        sendAll(producer, rig.topic, shared);
        until(15, "64 messages at the two", () -> {
            Set<String> got = first.bodies();
            got.addAll(second.bodies());
            return got.containsAll(shared);
        });
        // What the first had read ahead of committing may come again to the second; nothing of "shared" may.
        List<String> all = new ArrayList<>();
        first.all().forEach(message -> all.add(body(message)));
        second.all().forEach(message -> all.add(body(message)));
        equal(64L, all.stream().filter(shared::contains).count(), "messages received by the two together");
        equal(32L, second.all().stream().filter(message -> shared.contains(body(message))).count(), "messages received by the second");

        two.shutdown();
        until(10, "all queues back at the first consumer", () -> owned(one, rig.topic).size() == queues);
        sendAll(producer, rig.topic, numbered("again ", 16));
        first.atLeast(numbered("again ", 16), 15);
    }

    /** The type of the argument moved between packages from 4.x to 5.x. */
    private static void broadcast(DefaultMQPushConsumer consumer) throws Exception {
        for (var method : DefaultMQPushConsumer.class.getMethods()) {
            if (method.getName().equals("setMessageModel")) {
                for (Object model : method.getParameterTypes()[0].getEnumConstants()) {
                    if (model.toString().equals("BROADCASTING") || ((Enum<?>) model).name().equals("BROADCASTING")) {
                        method.invoke(consumer, model);
                        return;
                    }
                }
            }
        }
        throw new IllegalStateException("no setMessageModel");
    }

    private static void broadcasting(Rig rig) throws Exception {
        rig.createTopic();
        Set<String> bodies = numbered("all ", 32);
        sendAll(rig.producer(), rig.topic, bodies);
        Inbox[] inboxes = {new Inbox(), new Inbox()};
        for (Inbox inbox : inboxes) {
            DefaultMQPushConsumer consumer = rig.newPushConsumer();
            broadcast(consumer);
            rig.start(consumer, "*", inbox);
        }
        for (Inbox inbox : inboxes) {
            inbox.exactly(bodies, 40);
        }
    }

    private static void pull(Rig rig) throws Exception {
        List<MessageQueue> queues = rig.createTopic();
        DefaultMQProducer producer = rig.producer();
        MessageQueue queue = queues.get(3);
        for (int i = 0; i < 40; i++) {
            ok(producer.send(message(rig.topic, "pull " + i), queue));
        }
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(rig.group);
        consumer.setNamesrvAddr(rig.namesrv);
        consumer.setInstanceName(rig.instance());
        consumer.start();
        rig.onClose(consumer::shutdown);
        equal(queues.size(), consumer.fetchSubscribeMessageQueues(rig.topic).size(), "queues to subscribe");
        long offset = 0;
        List<String> bodies = new ArrayList<>();
        while (offset < 40) {
            PullResult result = consumer.pull(queue, "*", offset, 16);
            equal(PullStatus.FOUND, result.getPullStatus(), "status at offset " + offset);
            equal(0L, result.getMinOffset(), "minimum offset");
            equal(40L, result.getMaxOffset(), "maximum offset");
            result.getMsgFoundList().forEach(message -> bodies.add(body(message)));
            check(result.getNextBeginOffset() > offset, "no progress at offset " + offset);
            check(result.getMsgFoundList().size() <= 16, "more messages than asked for");
            offset = result.getNextBeginOffset();
        }
        for (int i = 0; i < 40; i++) {
            equal("pull " + i, bodies.get(i), "message " + i);
        }
        equal(PullStatus.NO_NEW_MSG, consumer.pull(queue, "*", 40, 16).getPullStatus(), "status at the end");
        PullResult beyond = consumer.pull(queue, "*", 1000, 16);
        equal(PullStatus.OFFSET_ILLEGAL, beyond.getPullStatus(), "status beyond the end");
        equal(40L, beyond.getNextBeginOffset(), "where to go on from beyond the end");
        equal(PullStatus.NO_NEW_MSG, consumer.pull(queues.get(1), "*", 0, 16).getPullStatus(), "status of an empty queue");
        PullResult unmatched = consumer.pull(queue, "other", 0, 16);
        equal(PullStatus.NO_MATCHED_MSG, unmatched.getPullStatus(), "status when no tag matches");
        check(unmatched.getNextBeginOffset() > 0, "no progress when no tag matches");

        // A held pull answers as soon as a message arrives.
        AtomicInteger woken = new AtomicInteger();
        Thread waiting = new Thread(() -> {
            try {
                PullResult result = consumer.pullBlockIfNotFound(queue, "*", 40, 16);
                woken.set(result.getPullStatus() == PullStatus.FOUND && body(result.getMsgFoundList().get(0)).equals("woken") ? 1 : -1);
            } catch (Exception e) {
                woken.set(-1);
            }
        });
        waiting.start();
        waiting.join(500);
        check(waiting.isAlive(), "a pull at the end of the queue was not held");
        ok(producer.send(message(rig.topic, "woken"), queue));
        until(3, "the held pull", () -> woken.get() != 0);
        equal(1, woken.get(), "held pull answered with the message");

        consumer.updateConsumeOffset(queue, 33);
        consumer.getDefaultMQPullConsumerImpl().getOffsetStore().persist(queue);
        until(10, "the stored offset", () -> consumer.fetchConsumeOffset(queue, true) == 33);
    }

    private static DefaultLitePullConsumer litePullConsumer(Rig rig, String group) {
        DefaultLitePullConsumer consumer = new DefaultLitePullConsumer(group);
        consumer.setNamesrvAddr(rig.namesrv);
        consumer.setInstanceName(rig.instance());
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setAutoCommit(false);
        return consumer;
    }

    private static void poll(DefaultLitePullConsumer consumer, Set<String> expected) {
        Inbox inbox = new Inbox();
        until(40, expected.size() + " messages polled", () -> {
            inbox.add(consumer.poll(200));
            return inbox.bodies().containsAll(expected);
        });
        inbox.exactly(expected, 1);
    }

    private static void litePull(Rig rig) throws Exception {
        List<MessageQueue> queues = rig.createTopic();
        Set<String> bodies = numbered("lite ", 40);
        sendAll(rig.producer(), rig.topic, bodies);
        DefaultLitePullConsumer subscribed = litePullConsumer(rig, rig.group);
        subscribed.subscribe(rig.topic, "*");
        subscribed.start();
        poll(subscribed, bodies);
        subscribed.commitSync();
        subscribed.getOffsetStore().persistAll(new HashSet<>(queues));
        until(10, "committed offsets", () -> {
            long sum = 0;
            for (MessageQueue queue : queues) {
                sum += subscribed.committed(queue);
            }
            return sum == 40;
        });
        MessageQueue queue = queues.get(0);
        subscribed.seek(queue, 2);
        MessageExt[] again = new MessageExt[1];
        until(10, "a message after seek", () -> {
            List<MessageExt> messages = subscribed.poll(200);
            again[0] = messages.isEmpty() ? null : messages.get(0);
            return again[0] != null;
        });
        equal(2L, again[0].getQueueOffset(), "offset after seek");
        subscribed.shutdown();

        DefaultLitePullConsumer assigned = litePullConsumer(rig, rig.group + "_assigned");
        assigned.start();
        rig.onClose(assigned::shutdown);
        assigned.assign(queues);
        for (MessageQueue each : queues) {
            assigned.seekToBegin(each);
        }
        poll(assigned, bodies);
    }

    private static void tags(Rig rig) throws Exception {
        rig.createTopic();
        DefaultMQProducer producer = rig.producer();
        Inbox either = new Inbox();
        rig.start(rig.newPushConsumer(), "TagA || TagC", either);
        // "Aa" and "BB" have the same hash: the broker lets both through, the client keeps its own.
        Inbox colliding = new Inbox();
        DefaultMQPushConsumer other = new DefaultMQPushConsumer(rig.group + "_colliding");
        other.setNamesrvAddr(rig.namesrv);
        other.setInstanceName(rig.instance());
        other.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        rig.start(other, "Aa", colliding);
        String[] tags = {"TagA", "TagB", "TagC", "Aa", "BB", ""};
        Set<String> forEither = new TreeSet<>();
        Set<String> forColliding = new TreeSet<>();
        for (int i = 0; i < 60; i++) {
            String tag = tags[i % tags.length];
            String body = "tagged " + i;
            ok(producer.send(new Message(rig.topic, tag, body.getBytes(StandardCharsets.UTF_8))));
            if (tag.equals("TagA") || tag.equals("TagC")) {
                forEither.add(body);
            }
            if (tag.equals("Aa")) {
                forColliding.add(body);
            }
        }
        either.exactly(forEither, 30);
        colliding.exactly(forColliding, 30);
    }

    private static void retryToDlq(Rig rig) throws Exception {
        rig.createTopic();
        DefaultMQPushConsumer consumer = rig.newPushConsumer();
        consumer.setMaxReconsumeTimes(2);
        Inbox inbox = new Inbox();
        consumer.subscribe(rig.topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            inbox.add(messages);
            if (body(messages.get(0)).startsWith("bad")) {
                // The first retry at the level the broker chooses (10 s), the second after 1 s.
                context.setDelayLevelWhenNextConsume(messages.get(0).getReconsumeTimes() == 0 ? 0 : 1);
                return ConsumeConcurrentlyStatus.RECONSUME_LATER;
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        rig.start(consumer);
        DefaultMQProducer producer = rig.producer();
        SendResult bad = ok(producer.send(new Message(rig.topic, "tag", "key", "bad".getBytes(StandardCharsets.UTF_8))));
        ok(producer.send(message(rig.topic, "good")));
        until(75, "three deliveries of the bad message",
            () -> inbox.all().stream().filter(message -> body(message).equals("bad")).count() == 3);
        int times = 0;
        for (MessageExt message : inbox.all()) {
            if (body(message).equals("bad")) {
                equal(times++, message.getReconsumeTimes(), "reconsume times");
                equal(rig.topic, message.getTopic(), "topic shown to the listener");
                equal("tag", message.getTags(), "tag");
                equal("key", message.getKeys(), "key");
                equal(bad.getMsgId(), message.getMsgId(), "message id");
            }
        }
        until(20, "the dead letter", () -> rig.stored("%DLQ%" + rig.group) == 1);
        equal(4, inbox.size(), "deliveries in all");
    }

    private static void delayLevels(Rig rig) throws Exception {
        int queues = rig.createTopic().size();
        Map<String, Long> arrived = new ConcurrentHashMap<>();
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = rig.newPushConsumer();
        consumer.subscribe(rig.topic, "delayed");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            messages.forEach(message -> arrived.putIfAbsent(body(message), System.currentTimeMillis()));
            inbox.add(messages);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        rig.start(consumer);
        until(30, "all queues at the consumer", () -> owned(consumer, rig.topic).size() == queues);
        DefaultMQProducer producer = rig.producer();
        Map<String, Long> sent = new HashMap<>();
        int[] seconds = {0, 1, 5, 10};
        for (int level = 0; level < seconds.length; level++) {
            Message message = new Message(rig.topic, "delayed", "level " + level, ("level " + level).getBytes(StandardCharsets.UTF_8));
            message.setDelayTimeLevel(level);
            sent.put("level " + level, System.currentTimeMillis());
            ok(producer.send(message));
        }
        inbox.exactly(sent.keySet(), 30);
        for (int level = 0; level < seconds.length; level++) {
            long took = arrived.get("level " + level) - sent.get("level " + level);
            check(took >= seconds[level] * 1000L - 50, "level " + level + " came after " + took + " ms");
            check(took <= seconds[level] * 1000L + 8000, "level " + level + " came only after " + took + " ms");
        }
        for (MessageExt message : inbox.all()) {
            equal(rig.topic, message.getTopic(), "topic");
            equal(body(message), message.getKeys(), "key");
        }
    }

    private static void autoCreatedTopic(Rig rig) throws Exception {
        DefaultMQProducer producer = rig.producer();
        Set<String> bodies = numbered("auto ", 40);
        sendAll(producer, rig.topic, bodies);
        until(15, "a route", () -> !producer.fetchPublishMessageQueues(rig.topic).isEmpty());
        if (Boolean.getBoolean("rocketcluster.servers")) {
            // Unlike the original, the topic is on every master at once.
            until(5, "4 queues on each of the masters", () ->
                producer.fetchPublishMessageQueues(rig.topic).size() == 4 * rig.admin.examineBrokerClusterInfo().getBrokerAddrTable().size());
        }
        Inbox inbox = new Inbox();
        rig.start(rig.newPushConsumer(), "*", inbox);
        inbox.exactly(bodies, 40);
    }

    private static void compressedBody(Rig rig) throws Exception {
        rig.createTopic();
        String body = "compress me ".repeat(3000);
        ok(rig.producer().send(message(rig.topic, body)));
        Inbox inbox = new Inbox();
        rig.start(rig.newPushConsumer(), "*", inbox);
        inbox.exactly(Set.of(body), 30);
        MessageExt message = inbox.all().get(0);
        check(message.getStoreSize() < 4000, "stored uncompressed, " + message.getStoreSize() + " bytes");
    }

    private static void query(Rig rig) throws Exception {
        rig.createTopic();
        DefaultMQProducer producer = rig.producer();
        String[] keys = {"Aa", "BB", "one two", "two"};
        Map<String, SendResult> results = new HashMap<>();
        for (String key : keys) {
            results.put(key, ok(producer.send(new Message(rig.topic, "tag", key, ("key " + key).getBytes(StandardCharsets.UTF_8)))));
        }
        Map<String, Integer> expected = Map.of("Aa", 1, "BB", 1, "one", 1, "two", 2);
        for (Map.Entry<String, Integer> entry : expected.entrySet()) {
            until(20, entry.getValue() + " messages by key " + entry.getKey(), () ->
                rig.admin.queryMessage(rig.topic, entry.getKey(), 32, 0, Long.MAX_VALUE).getMessageList().size() == entry.getValue());
        }
        for (String key : keys) {
            SendResult result = results.get(key);
            for (String id : List.of(result.getMsgId(), result.getOffsetMsgId())) {
                MessageExt[] found = new MessageExt[1];
                until(20, "the message with id " + id, () -> {
                    found[0] = rig.admin.viewMessage(rig.topic, id);
                    return found[0] != null;
                });
                equal("key " + key, body(found[0]), "body by id");
                equal(result.getQueueOffset(), found[0].getQueueOffset(), "queue offset by id");
                equal(result.getMessageQueue().getQueueId(), found[0].getQueueId(), "queue by id");
            }
        }
        try {
            rig.admin.queryMessage(rig.topic, "nothing", 32, 0, Long.MAX_VALUE);
            throw new Rig.Failed("a key that no message has was found");
        } catch (org.apache.rocketmq.client.exception.MQClientException e) {
            equal(208, e.getResponseCode(), "code for an unknown key");
        }
    }

    private static void largeMessage(Rig rig) throws Exception {
        rig.createTopic();
        byte[] body = new byte[4 * 1024 * 1024 - 4096];
        new Random(7).nextBytes(body);
        DefaultMQProducer producer = rig.newProducer();
        producer.setMaxMessageSize(8 * 1024 * 1024);
        producer.setCompressMsgBodyOverHowmuch(Integer.MAX_VALUE);
        producer.start();
        rig.onClose(producer::shutdown);
        ok(producer.send(new Message(rig.topic, body)));
        Inbox inbox = new Inbox();
        rig.start(rig.newPushConsumer(), "*", inbox);
        until(40, "the large message", () -> inbox.size() == 1);
        check(java.util.Arrays.equals(body, inbox.all().get(0).getBody()), "the large body changed on its way");
        try {
            producer.send(new Message(rig.topic, new byte[4 * 1024 * 1024 + 1]));
            throw new Rig.Failed("a body above 4 MiB was taken");
        } catch (MQBrokerException e) {
            equal(13, e.getResponseCode(), "code for a body above 4 MiB");
        }
        ok(producer.send(message(rig.topic, "after the refusal")));
    }

    private static void offsetsOverRestart(Rig rig) throws Exception {
        List<MessageQueue> queues = rig.createTopic();
        DefaultMQProducer producer = rig.producer();
        Inbox before = new Inbox();
        DefaultMQPushConsumer consumer = rig.newPushConsumer();
        // What the listener has seen is consumed only when it has returned: a shutdown that does not wait commits less.
        consumer.setAwaitTerminationMillisWhenShutdown(10_000);
        rig.start(consumer, "*", before);
        sendAll(producer, rig.topic, numbered("before ", 40));
        before.exactly(numbered("before ", 40), 40);
        consumer.shutdown();
        DefaultMQPullConsumer reader = new DefaultMQPullConsumer(rig.group);
        reader.setNamesrvAddr(rig.namesrv);
        reader.setInstanceName(rig.instance());
        reader.start();
        until(10, "the stored offsets", () -> {
            long sum = 0;
            for (MessageQueue queue : queues) {
                sum += Math.max(0, reader.fetchConsumeOffset(queue, true));
            }
            return sum == 40;
        });
        // It counts as a member of the group, so it has to leave.
        reader.shutdown();
        sendAll(producer, rig.topic, numbered("after ", 20));
        Inbox after = new Inbox();
        rig.start(rig.newPushConsumer(), "*", after);
        after.exactly(numbered("after ", 20), 40);
    }

    private static void offsetSearch(Rig rig) throws Exception {
        List<MessageQueue> queues = rig.createTopic();
        DefaultMQProducer producer = rig.producer();
        MessageQueue queue = queues.get(0);
        equal(0L, producer.maxOffset(queue), "maximum of an empty queue");
        equal(0L, producer.minOffset(queue), "minimum of an empty queue");
        long began = System.currentTimeMillis();
        for (int i = 0; i < 10; i++) {
            ok(producer.send(message(rig.topic, "search " + i), queue));
        }
        // The original answers before it has dispatched the messages to their queue.
        until(10, "a maximum of 10", () -> producer.maxOffset(queue) == 10);
        equal(0L, producer.minOffset(queue), "minimum");
        equal(0L, producer.searchOffset(queue, began - 60_000), "offset of a time before the first");
        long earliest = producer.earliestMsgStoreTime(queue);
        check(Math.abs(earliest - began) < 60_000, "earliest store time " + earliest + ", now " + began);
    }

    private static void fastPort(Rig rig) throws Exception {
        rig.createTopic();
        DefaultMQProducer producer = rig.newProducer();
        producer.setVipChannelEnabled(true);
        producer.start();
        rig.onClose(producer::shutdown);
        sendAll(producer, rig.topic, numbered("fast ", 10));
        until(15, "10 stored messages", () -> rig.stored(rig.topic) == 10);
    }

    private static void trace(Rig rig) throws Exception {
        rig.createTopic();
        DefaultMQProducer producer = new DefaultMQProducer(rig.group + "_P", true, rig.topic + "_trace");
        producer.setNamesrvAddr(rig.namesrv);
        producer.setInstanceName(rig.instance());
        producer.start();
        rig.onClose(producer::shutdown);
        sendAll(producer, rig.topic, numbered("traced ", 5));
        until(30, "a stored trace", () -> rig.stored(rig.topic + "_trace") > 0);
    }

    /** What a broker must refuse, and with which code. */
    private static void refusals(Rig rig) throws Exception {
        List<MessageQueue> queues = rig.createTopic();
        DefaultMQProducer producer = rig.producer();
        try {
            producer.send(message(rig.topic, "no such queue"), new MessageQueue(rig.topic, queues.get(0).getBrokerName(), 99));
            throw new Rig.Failed("a message for queue 99 was taken");
        } catch (MQBrokerException e) {
            check(e.getResponseCode() == 1 || e.getResponseCode() == 29, "code for an illegal queue: " + e.getResponseCode());
        }
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(rig.group);
        consumer.setNamesrvAddr(rig.namesrv);
        consumer.setInstanceName(rig.instance());
        consumer.start();
        rig.onClose(consumer::shutdown);
        try {
            consumer.pull(new MessageQueue(rig.topic, queues.get(0).getBrokerName(), 99), "*", 0, 1);
            throw new Rig.Failed("a pull from queue 99 was answered");
        } catch (MQBrokerException e) {
            check(e.getResponseCode() == 1 || e.getResponseCode() == 29, "code for an illegal queue: " + e.getResponseCode());
        }
        try {
            consumer.pull(new MessageQueue(rig.topic + "_absent", queues.get(0).getBrokerName(), 0), "*", 0, 1);
            throw new Rig.Failed("a pull from an absent topic was answered");
        } catch (MQBrokerException e) {
            equal(17, e.getResponseCode(), "code for an absent topic");
        }
    }

    /** A new group with CONSUME_FROM_LAST_OFFSET still reads a young topic from its start. */
    private static void latestOffset(Rig rig) throws Exception {
        rig.createTopic();
        DefaultMQProducer producer = rig.producer();
        sendAll(producer, rig.topic, numbered("young ", 16));
        DefaultMQPushConsumer consumer = rig.newPushConsumer();
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET);
        Inbox inbox = new Inbox();
        rig.start(consumer, "*", inbox);
        inbox.exactly(numbered("young ", 16), 30);
    }

    /** A message reaches a waiting push consumer at once, not at the next sweep of held pulls. */
    private static void pushLatency(Rig rig) throws Exception {
        int queues = rig.createTopic().size();
        Map<String, Long> arrived = new ConcurrentHashMap<>();
        DefaultMQPushConsumer consumer = rig.newPushConsumer();
        consumer.subscribe(rig.topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            messages.forEach(message -> arrived.put(body(message), System.nanoTime()));
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        rig.start(consumer);
        until(30, "all queues at the consumer", () -> owned(consumer, rig.topic).size() == queues);
        DefaultMQProducer producer = rig.producer();
        List<Long> latencies = new ArrayList<>();
        for (int i = 0; i < 40; i++) {
            String body = "latency " + i;
            long began = System.nanoTime();
            ok(producer.send(message(rig.topic, body)));
            until(20, body, () -> arrived.containsKey(body));
            latencies.add(arrived.get(body) - began);
        }
        latencies.sort(null);
        long median = TimeUnit.NANOSECONDS.toMillis(latencies.get(latencies.size() / 2));
        check(median < 500, "median latency " + median + " ms");
    }
}
