// Scenarios of the unmodified Go client against a running cluster: one PASS or FAIL line each, then "N passed, N failed".
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

// rig is what one scenario works with: names of its own, clients that are closed at its end.
type rig struct {
	namesrv primitive.NamesrvAddr
	topic   string
	group   string
	clients int
	closers []func()
}

type failure string

func fail(format string, arguments ...any) { panic(failure(fmt.Sprintf(format, arguments...))) }

func must(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func (r *rig) instance() string {
	r.clients++
	return fmt.Sprintf("%s-%d", r.group, r.clients)
}

func (r *rig) producer(options ...producer.Option) rocketmq.Producer {
	options = append([]producer.Option{
		producer.WithNameServer(r.namesrv),
		producer.WithGroupName(r.group + "_P"),
		producer.WithInstanceName(r.instance()),
		producer.WithRetry(2),
		producer.WithSendMsgTimeout(10 * time.Second),
	}, options...)
	p, err := rocketmq.NewProducer(options...)
	must(err)
	must(p.Start())
	r.closers = append(r.closers, func() { _ = p.Shutdown() })
	return p
}

// inbox keeps what a consumer got, in order.
type inbox struct {
	lock     sync.Mutex
	messages []*primitive.MessageExt
}

func (in *inbox) add(messages ...*primitive.MessageExt) {
	in.lock.Lock()
	defer in.lock.Unlock()
	in.messages = append(in.messages, messages...)
}

func (in *inbox) all() []*primitive.MessageExt {
	in.lock.Lock()
	defer in.lock.Unlock()
	return append([]*primitive.MessageExt(nil), in.messages...)
}

func (in *inbox) bodies() map[string]int {
	bodies := map[string]int{}
	for _, message := range in.all() {
		bodies[string(message.Body)]++
	}
	return bodies
}

func (in *inbox) atLeast(expected []string, limit time.Duration) {
	var missing []string
	until(limit, func() string {
		return fmt.Sprintf("%d messages, %d came, missing %v", len(expected), len(in.all()), missing[:min(5, len(missing))])
	}, func() bool {
		missing = missing[:0]
		bodies := in.bodies()
		for _, body := range expected {
			if bodies[body] == 0 {
				missing = append(missing, body)
			}
		}
		return len(missing) == 0
	})
}

func (in *inbox) exactly(expected []string, limit time.Duration) {
	in.atLeast(expected, limit)
	if got := len(in.all()); got != len(expected) {
		fail("expected %d messages, %d came: %v", len(expected), got, in.bodies())
	}
}

// until waits for a condition, at most for the given time.
func until(limit time.Duration, what func() string, condition func() bool) {
	deadline := time.Now().Add(limit)
	for !condition() {
		if time.Now().After(deadline) {
			fail("after %v still waiting for %s", limit, what())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func text(s string) func() string { return func() string { return s } }

type handler = func(context.Context, ...*primitive.MessageExt) (consumer.ConsumeResult, error)

func (in *inbox) handler() handler {
	return func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		in.add(messages...)
		return consumer.ConsumeSuccess, nil
	}
}

func (r *rig) push(expression string, handle handler, options ...consumer.Option) rocketmq.PushConsumer {
	options = append([]consumer.Option{
		consumer.WithNameServer(r.namesrv),
		consumer.WithGroupName(r.group),
		consumer.WithInstance(r.instance()),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
	}, options...)
	c, err := rocketmq.NewPushConsumer(options...)
	must(err)
	must(c.Subscribe(r.topic, consumer.MessageSelector{Type: consumer.TAG, Expression: expression}, handle))
	must(c.Start())
	r.closers = append(r.closers, func() { _ = c.Shutdown() })
	return c
}

func (r *rig) message(body string) *primitive.Message {
	return primitive.NewMessage(r.topic, []byte(body))
}

func send(p rocketmq.Producer, messages ...*primitive.Message) *primitive.SendResult {
	result, err := p.SendSync(context.Background(), messages...)
	must(err)
	if result.Status != primitive.SendOK {
		fail("send status %v", result.Status)
	}
	return result
}

func numbered(prefix string, count int) []string {
	var bodies []string
	for i := 0; i < count; i++ {
		bodies = append(bodies, fmt.Sprintf("%s %d", prefix, i))
	}
	return bodies
}

func sendAll(r *rig, p rocketmq.Producer, bodies []string) {
	for _, body := range bodies {
		send(p, r.message(body))
	}
}

func sync_(r *rig) {
	bodies := numbered("sync", 100)
	ids := map[string]bool{}
	p := r.producer()
	for _, body := range bodies {
		ids[send(p, r.message(body)).MsgID] = true
	}
	if len(ids) != 100 {
		fail("%d different message ids of 100", len(ids))
	}
	var in inbox
	r.push("*", in.handler())
	in.exactly(bodies, 60*time.Second)
}

func async(r *rig) {
	p := r.producer()
	bodies := numbered("async", 100)
	var answered sync.WaitGroup
	var failed atomic.Value
	for _, body := range bodies {
		answered.Add(1)
		must(p.SendAsync(context.Background(), func(_ context.Context, result *primitive.SendResult, err error) {
			if err != nil {
				failed.Store(err.Error())
			} else if result.Status != primitive.SendOK {
				failed.Store(fmt.Sprint(result.Status))
			}
			answered.Done()
		}, r.message(body)))
	}
	answered.Wait()
	if why := failed.Load(); why != nil {
		fail("%v", why)
	}
	var in inbox
	r.push("*", in.handler())
	in.exactly(bodies, 60*time.Second)
}

func oneway(r *rig) {
	p := r.producer()
	// The first one creates the topic and waits for its route.
	send(p, r.message("oneway 0"))
	bodies := numbered("oneway", 50)
	for _, body := range bodies[1:] {
		must(p.SendOneWay(context.Background(), r.message(body)))
	}
	var in inbox
	r.push("*", in.handler())
	in.exactly(bodies, 60*time.Second)
}

func batch(r *rig) {
	p := r.producer()
	bodies := numbered("batch", 20)
	var messages []*primitive.Message
	for _, body := range bodies {
		messages = append(messages, r.message(body).WithTag("tag").WithKeys([]string{strings.ReplaceAll(body, " ", "-")}))
	}
	result := send(p, messages...)
	if n := len(strings.Split(result.OffsetMsgID, ",")); n != 20 {
		fail("%d offset ids for a batch of 20", n)
	}
	var in inbox
	r.push("tag", in.handler())
	in.exactly(bodies, 60*time.Second)
	for _, message := range in.all() {
		if want := strings.ReplaceAll(string(message.Body), " ", "-"); message.GetKeys() != want {
			fail("key %q, expected %q", message.GetKeys(), want)
		}
	}
}

func tags(r *rig) {
	p := r.producer()
	var expected []string
	// "Aa" and "BB" have the same hash: the broker lets both through, the client keeps its own.
	for i, tag := range []string{"Aa", "BB", "TagC", "Aa", "TagD", "TagC", "BB", "Aa"} {
		body := fmt.Sprintf("tagged %d", i)
		send(p, r.message(body).WithTag(tag))
		if tag == "Aa" || tag == "TagC" {
			expected = append(expected, body)
		}
	}
	var in inbox
	r.push("Aa || TagC", in.handler())
	in.exactly(expected, 60*time.Second)
}

func ordered(r *rig) {
	p := r.producer(producer.WithQueueSelector(producer.NewHashQueueSelector()))
	var bodies []string
	for step := 0; step < 10; step++ {
		for order := 0; order < 6; order++ {
			body := fmt.Sprintf("order%d %d", order, step)
			bodies = append(bodies, body)
			message := r.message(body)
			message.WithShardingKey(fmt.Sprintf("order%d", order))
			send(p, message)
		}
	}
	var in inbox
	r.push("*", in.handler(), consumer.WithConsumerOrder(true), consumer.WithConsumeMessageBatchMaxSize(1))
	in.exactly(bodies, 80*time.Second)
	next := map[string]int{}
	for _, message := range in.all() {
		var step int
		order, number, _ := strings.Cut(string(message.Body), " ")
		_, _ = fmt.Sscan(number, &step)
		if next[order] != step {
			fail("%s: step %d came, expected %d", order, step, next[order])
		}
		next[order]++
	}
}

func broadcast(r *rig) {
	bodies := numbered("all", 20)
	sendAll(r, r.producer(), bodies)
	var one, two inbox
	r.push("*", one.handler(), consumer.WithConsumerModel(consumer.BroadCasting))
	r.push("*", two.handler(), consumer.WithConsumerModel(consumer.BroadCasting))
	one.atLeast(bodies, 60*time.Second)
	two.atLeast(bodies, 60*time.Second)
}

func shared(r *rig) {
	p := r.producer()
	sendAll(r, p, numbered("first", 8))
	var one, two inbox
	r.push("*", one.handler())
	one.atLeast(numbered("first", 8), 60*time.Second)
	r.push("*", two.handler())
	// Sends until the second got its share of the queues.
	var sent []string
	until(60*time.Second, text("a share for the second consumer"), func() bool {
		bodies := numbered(fmt.Sprintf("round %d", len(sent)), 8)
		sendAll(r, p, bodies)
		sent = append(sent, bodies...)
		return len(two.all()) > 0
	})
	until(30*time.Second, text("every message at one of the two"), func() bool {
		a, b := one.bodies(), two.bodies()
		for _, body := range sent {
			if a[body]+b[body] == 0 {
				return false
			}
		}
		return true
	})
}

func retry(r *rig) {
	p := r.producer()
	send(p, r.message("bad"))
	var in inbox
	r.push("*", func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		in.add(messages...)
		if messages[0].ReconsumeTimes == 0 {
			return consumer.ConsumeRetryLater, nil
		}
		return consumer.ConsumeSuccess, nil
	}, consumer.WithMaxReconsumeTimes(3))
	until(85*time.Second, text("the second delivery"), func() bool { return len(in.all()) == 2 })
	second := in.all()[1]
	if second.ReconsumeTimes != 1 || string(second.Body) != "bad" {
		fail("second delivery: %v", second)
	}
}

func delay(r *rig) {
	p := r.producer()
	send(p, r.message("now"))
	var in inbox
	var arrived sync.Map
	r.push("*", func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		for _, message := range messages {
			arrived.Store(string(message.Body), time.Now())
		}
		in.add(messages...)
		return consumer.ConsumeSuccess, nil
	})
	in.exactly([]string{"now"}, 60*time.Second)
	sent := time.Now()
	send(p, r.message("later").WithDelayTimeLevel(2))
	in.exactly([]string{"now", "later"}, 30*time.Second)
	at, _ := arrived.Load("later")
	if took := at.(time.Time).Sub(sent); took < 4950*time.Millisecond || took > 10*time.Second {
		fail("a delay of 5 s took %v", took)
	}
}

func pull(r *rig) {
	bodies := numbered("pull", 32)
	sendAll(r, r.producer(), bodies)
	c, err := rocketmq.NewPullConsumer(
		consumer.WithNameServer(r.namesrv),
		consumer.WithGroupName(r.group),
		consumer.WithInstance(r.instance()),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
	)
	must(err)
	must(c.Subscribe(r.topic, consumer.MessageSelector{Type: consumer.TAG, Expression: "*"}))
	must(c.Start())
	r.closers = append(r.closers, func() { _ = c.Shutdown() })
	var in inbox
	until(60*time.Second, text("32 polled messages"), func() bool {
		request, err := c.Poll(context.Background(), 500*time.Millisecond)
		if err == nil {
			in.add(request.GetMsgList()...)
			c.ACK(context.Background(), request, consumer.ConsumeSuccess)
		}
		return len(in.bodies()) >= 32
	})
	in.exactly(bodies, time.Second)
}

func compressed(r *rig) {
	body := strings.Repeat("compress me ", 3000)
	send(r.producer(), r.message(body))
	var in inbox
	r.push("*", in.handler())
	in.exactly([]string{body}, 60*time.Second)
}

func restart(r *rig) {
	p := r.producer()
	before := numbered("before", 20)
	sendAll(r, p, before)
	var first inbox
	c := r.push("*", first.handler())
	first.exactly(before, 60*time.Second)
	must(c.Shutdown())
	after := numbered("after", 20)
	sendAll(r, p, after)
	var second inbox
	r.push("*", second.handler())
	second.exactly(after, 60*time.Second)
}

func run(name string, scenario func(*rig), r *rig) (verdict string) {
	began := time.Now()
	defer func() {
		if why := recover(); why != nil {
			verdict = fmt.Sprintf("FAIL %s %v", name, why)
		}
		for i := len(r.closers) - 1; i >= 0; i-- {
			func() {
				defer func() { _ = recover() }() // the client panics when it is shut down twice
				r.closers[i]()
			}()
		}
	}()
	scenario(r)
	return fmt.Sprintf("PASS %s %d", name, time.Since(began).Milliseconds())
}

func main() {
	namesrv := flag.String("namesrv", "", "host:port of the name server")
	only := flag.String("only", "", "names of scenarios, with commas")
	flag.Parse()
	rlog.SetLogLevel("fatal")
	scenarios := map[string]func(*rig){
		"sync": sync_, "async": async, "oneway": oneway, "batch": batch, "tags": tags, "ordered": ordered, "broadcasting": broadcast,
		"clustering-shared": shared, "retry": retry, "delay": delay, "pull": pull, "compressed-body": compressed, "offsets-over-restart": restart,
	}
	var names []string
	for name := range scenarios {
		if *only == "" || strings.Contains(","+*only+",", ","+name+",") {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	address, err := primitive.NewNamesrvAddr(strings.Split(*namesrv, ";")...)
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	verdicts := make(chan string)
	for _, name := range names {
		own := fmt.Sprintf("go_%d_%s", time.Now().UnixNano()%1_000_000_000, name)
		go func() { verdicts <- run(name, scenarios[name], &rig{namesrv: address, topic: "T_" + own, group: "G_" + own}) }()
	}
	passed, failed := 0, 0
	for range names {
		verdict := <-verdicts
		fmt.Println(verdict)
		if strings.HasPrefix(verdict, "PASS") {
			passed++
		} else {
			failed++
		}
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}
