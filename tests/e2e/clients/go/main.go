// Command client exchanges COUNT messages through NAMESRV with the unmodified Go client: sends them, and waits until its push consumer has all.
//
//	client NAMESRV TOPIC COUNT
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

const limit = 60 * time.Second

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(namesrv, topic, number string) error {
	rlog.SetLogLevel("error")
	count, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	unique := fmt.Sprint(time.Now().UnixNano())
	p, err := rocketmq.NewProducer(producer.WithNameServer([]string{namesrv}), producer.WithGroupName("go-p-"+unique), producer.WithRetry(3))
	if err != nil {
		return err
	}
	if err := p.Start(); err != nil {
		return err
	}
	sent := map[string]bool{}
	for i := 0; i < count; i++ {
		body := fmt.Sprintf("%s-%d", unique, i)
		var r *primitive.SendResult
		for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
			r, err = p.SendSync(context.Background(), primitive.NewMessage(topic, []byte(body)))
			if err == nil || time.Now().After(end) {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("send %d: %w", i, err)
		}
		if r.Status != primitive.SendOK {
			return fmt.Errorf("send %d: %s", i, r)
		}
		sent[body] = true
	}
	var lock sync.Mutex
	all := make(chan struct{})
	c, err := rocketmq.NewPushConsumer(consumer.WithNameServer([]string{namesrv}), consumer.WithGroupName("go-c-"+unique),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset))
	if err != nil {
		return err
	}
	err = c.Subscribe(topic, consumer.MessageSelector{}, func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		lock.Lock()
		defer lock.Unlock()
		before := len(sent)
		for _, m := range messages {
			delete(sent, string(m.Body))
		}
		if before > 0 && len(sent) == 0 {
			close(all)
		}
		return consumer.ConsumeSuccess, nil
	})
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	select {
	case <-all:
		fmt.Printf("{\"acked\": %d, \"missing\": 0}\n", count)
		return nil
	case <-time.After(limit):
		lock.Lock()
		defer lock.Unlock()
		return fmt.Errorf("%d of %d messages did not come in %s", len(sent), count, limit)
	}
}
